//! The page around the charts: a self-contained HTML document.

use std::ops::Range;

/// Renders a whole HTML document. `body` is HTML and is not escaped.
pub(super) fn document(title: &str, body: &str) -> String {
    let title = escape(title);
    format!(
        r#"<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title}</title>
<style>{STYLE}</style>
</head>
<body>
<main>
<h1>{title}</h1>
{body}</main>
</body>
</html>
"#
    )
}

/// Escapes a text for use in an element or a quoted attribute.
pub(super) fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            other => escaped.push(other),
        }
    }
    escaped
}

/// Renders a paragraph. `text` is escaped.
pub(super) fn paragraph(class: &str, text: &str) -> String {
    format!("<p class=\"{class}\">{}</p>\n", escape(text))
}

/// Renders a chart under its caption. `svg` is markup and is not escaped.
pub(super) fn figure(caption: &str, svg: &str) -> String {
    let caption = escape(caption);
    format!("<figure><figcaption>{caption}</figcaption>{svg}</figure>\n")
}

/// Renders a list of names with their definitions.
pub(super) fn definitions(entries: &[(&str, String)]) -> String {
    let mut html = String::from("<dl>\n");
    for (name, value) in entries {
        html.push_str(&format!("<dt>{}</dt><dd>{}</dd>\n", escape(name), escape(value)));
    }
    html.push_str("</dl>\n");
    html
}

/// Renders a table. The columns in `numbers` are right-aligned.
pub(super) fn table(headings: &[&str], numbers: &Range<usize>, rows: &[Vec<String>]) -> String {
    let class = |column: usize| if numbers.contains(&column) { " class=\"number\"" } else { "" };
    let mut html = String::from("<div class=\"wide\"><table>\n<thead><tr>");
    for (column, heading) in headings.iter().enumerate() {
        let (class, heading) = (class(column), escape(heading));
        html.push_str(&format!("<th scope=\"col\"{class}>{heading}</th>"));
    }
    html.push_str("</tr></thead>\n<tbody>\n");
    for row in rows {
        html.push_str("<tr>");
        for (column, cell) in row.iter().enumerate() {
            let (class, cell) = (class(column), escape(cell));
            html.push_str(&format!("<td{class}>{cell}</td>"));
        }
        html.push_str("</tr>\n");
    }
    html.push_str("</tbody>\n</table></div>\n");
    html
}

/// Modes 0 and 1 have two colours that are distinct for every common kind of colour blindness. On a
/// dark background they have lighter tints of the same two.
const STYLE: &str = "
:root { --back: #fff; --ink: #1b1f24; --muted: #57606a; --grid: #e3e6ea; --rule: #8c959f;
  --alert: #a40e26; --m0: #0072B2; --m1: #D55E00; --m2: #009E73; --m3: #A8508A; }
@media (prefers-color-scheme: dark) {
  :root { --back: #14171a; --ink: #e6e8ea; --muted: #9aa4ad; --grid: #2b3137; --rule: #6b7681;
    --alert: #ff8182; --m0: #4aa8e0; --m1: #f08743; --m2: #35c79b; --m3: #d88fc0; } }
body { margin: 0; background: var(--back); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif; }
main { max-width: 90rem; margin: 0 auto; padding: 1.5rem; }
h1 { font-size: 1.6rem; margin: 0 0 .5rem; }
h2 { font-size: 1.2rem; margin: 2.5rem 0 .25rem; }
p { max-width: 48rem; margin: .4rem 0; }
.muted, figcaption, dt { color: var(--muted); }
.alert { color: var(--alert); font-weight: 600; }
.charts { display: grid; gap: 1rem 2rem;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 36rem), 1fr)); }
figure { margin: .75rem 0 0; overflow-x: auto; }
figcaption { font-weight: 600; }
svg { display: block; width: 100%; min-width: 32rem; height: auto; font-size: 12px; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; margin: .75rem 0; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .8rem .3rem 0; text-align: left; white-space: nowrap; }
th { color: var(--muted); font-weight: 600; border-bottom: 1px solid var(--rule); }
td { border-bottom: 1px solid var(--grid); }
.number { text-align: right; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .15rem 1.5rem; margin: .75rem 0; }
dd { margin: 0; max-width: 48rem; }
summary { cursor: pointer; }
.ink { fill: var(--ink); }
svg .muted { fill: var(--muted); }
.grid { stroke: var(--grid); }
.axis { stroke: var(--rule); }
.link { stroke: var(--rule); stroke-width: 1.5; }
.mark { stroke: var(--ink); stroke-dasharray: 4 4; }
.mark-label { fill: var(--ink); stroke: var(--back); stroke-width: 4px; paint-order: stroke; }
.m0 { --mode: var(--m0); } .m1 { --mode: var(--m1); }
.m2 { --mode: var(--m2); } .m3 { --mode: var(--m3); }
polyline { fill: none; stroke: var(--mode); stroke-width: 1.75; stroke-linejoin: round; }
.dashed { stroke-dasharray: 6 4; }
.faint { opacity: .3; stroke-width: 1; }
.marker { fill: var(--mode); stroke: var(--back); stroke-width: 1; }
";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escape_replaces_html_special_characters() {
        let table = [
            ("plain µs – text", "plain µs – text"),
            (
                "<script>alert('1' & \"2\")</script>",
                "&lt;script&gt;alert(&#39;1&#39; &amp; &quot;2&quot;)&lt;/script&gt;",
            ),
            ("&lt;", "&amp;lt;"),
            ("", ""),
        ];
        for (text, expected) in table {
            assert_eq!(escape(text), expected);
        }
    }

    #[test]
    fn table_escapes_cells_and_aligns_numbers() {
        let html = table(&["a<b", "n"], &(1..2), &[vec!["x&y".to_string(), "7".to_string()]]);
        assert!(html.contains("<th scope=\"col\">a&lt;b</th>"), "{html}");
        assert!(html.contains("<td>x&amp;y</td><td class=\"number\">7</td>"), "{html}");
    }
}
