//! Rules for the text of the workspace: plain words, line widths, file lengths, and the direction
//! of dependencies between crates and between the modules of a crate.
#![allow(clippy::disallowed_methods, reason = "reads the sources")]

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

/// Columns of a comment line.
const MAX_COLUMNS: usize = 100;

/// Lines of a source file.
const MAX_LINES: usize = 650;

/// Words that comments, messages, names and documents do not use, as parts of a lower-case word.
/// Split, so that this file may hold them.
const BANNED_WORDS: [[&str; 2]; 9] = [
    ["who", "ever"],
    ["what", "ever"],
    ["some", "body"],
    ["no", "body"],
    ["any", "body"],
    ["like", "wise"],
    ["there", "by"],
    ["tor", "ment"],
    ["vou", "ch"],
];

fn root() -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    root.canonicalize().expect("the workspace is above the package")
}

/// All files below the workspace with one of the extensions, except build output.
fn files(extensions: &[&str]) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut directories = vec![root()];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(directory).expect("a directory") {
            let path = entry.expect("an entry").path();
            let name = path.file_name().expect("a name").to_string_lossy().into_owned();
            if path.is_dir() && !name.starts_with('.') && !name.starts_with("target") {
                directories.push(path);
            } else if path.extension().is_some_and(|e| extensions.iter().any(|x| e == *x)) {
                found.push(path);
            }
        }
    }
    found.sort();
    assert!(found.len() > 5, "the workspace has more files");
    found
}

fn shown(path: &Path) -> String {
    path.strip_prefix(root()).unwrap_or(path).display().to_string()
}

fn assert_none(faults: &[String], rule: &str) {
    assert!(faults.is_empty(), "{rule}:\n{}", faults.join("\n"));
}

#[test]
fn tidy_text_avoids_banned_words() {
    let banned = BANNED_WORDS.map(|parts| parts.concat());
    let mut faults = Vec::new();
    for path in files(&["rs", "md", "toml"]) {
        let text = fs::read_to_string(&path).expect("text");
        for (number, line) in text.lines().enumerate() {
            let lower = line.to_lowercase();
            let words = lower.split(|c: char| !c.is_alphanumeric());
            let found = words.into_iter().find(|word| {
                *word == ["a", "new"].concat()
                    || banned.iter().any(|banned| word.starts_with(banned.as_str()))
            });
            faults.extend(found.map(|word| format!("{}:{}: {word}", shown(&path), number + 1)));
        }
    }
    assert_none(&faults, "these words are banned");
}

#[test]
fn tidy_comments_fit_line_width() {
    let mut faults = Vec::new();
    for path in files(&["rs"]) {
        let text = fs::read_to_string(&path).expect("text");
        for (number, line) in text.lines().enumerate() {
            let columns = line.chars().count();
            if columns > MAX_COLUMNS && line.trim_start().starts_with("//") {
                faults.push(format!("{}:{}: {columns} columns", shown(&path), number + 1));
            }
        }
    }
    assert_none(&faults, "comments are at most 100 columns wide");
}

#[test]
fn tidy_source_files_stay_within_line_limit() {
    let lines = |path: &PathBuf| fs::read_to_string(path).expect("text").lines().count();
    let long = files(&["rs"]).into_iter().map(|path| (lines(&path), path));
    let long = long.filter(|(lines, _)| *lines > MAX_LINES);
    let faults: Vec<_> =
        long.map(|(lines, path)| format!("{}: {lines} lines", shown(&path))).collect();
    assert_none(&faults, "source files have at most 650 lines");
}

#[test]
fn tidy_documents_reference_existing_files() {
    let sources: Vec<_> = files(&["rs"]).iter().map(|path| format!("/{}", shown(path))).collect();
    let exists = |name: &str| sources.iter().any(|path| path.ends_with(&format!("/{name}")));
    let mut faults = Vec::new();
    // The changelog tells of files that are gone.
    for path in files(&["md"]).into_iter().filter(|path| !path.ends_with("CHANGELOG.md")) {
        let text = fs::read_to_string(&path).expect("text");
        for (number, line) in text.lines().enumerate() {
            let quoted = line.split('`').skip(1).step_by(2);
            let names = quoted.filter(|name| name.ends_with(".rs") && !name.contains(['*', ' ']));
            let missing = names.filter(|name| !exists(name));
            faults.extend(missing.map(|name| format!("{}:{}: {name}", shown(&path), number + 1)));
        }
    }
    assert_none(&faults, "these files do not exist");
}

/// The packages of the table in ARCHITECTURE.md, in their order, by directory.
fn layers() -> Vec<String> {
    let text = fs::read_to_string(root().join("ARCHITECTURE.md")).expect("ARCHITECTURE.md");
    let rows = text.lines().filter_map(|line| line.strip_prefix("| `"));
    let names = rows.filter_map(|row| row.split('`').next().map(str::to_owned));
    names.filter(|name| root().join(name).join("Cargo.toml").exists()).collect()
}

#[test]
fn tidy_crate_dependencies_follow_layer_order() {
    let layers = layers();
    let mut faults = Vec::new();
    for (own, directory) in layers.iter().enumerate() {
        let manifest = root().join(directory).join("Cargo.toml");
        let manifest = fs::read_to_string(manifest).expect("a manifest");
        let dependencies = manifest.split("[dev-dependencies]").next().expect("a part");
        for line in dependencies.lines() {
            let Some(name) = line.strip_prefix("palisade-") else { continue };
            let name = name.split(['.', ' ', '=']).next().expect("a name");
            let at = layers.iter().position(|layer| layer.ends_with(&format!("/{name}")));
            if at.is_none_or(|at| at >= own) {
                faults.push(format!("{directory} depends on {name}"));
            }
        }
    }
    assert!(layers.len() > 15, "the table in ARCHITECTURE.md has all crates: {layers:?}");
    assert_none(&faults, "a crate depends only on crates above it in ARCHITECTURE.md");
}

type Module = Vec<String>;

/// What the modules of a crate import from each other.
struct Imports {
    /// The paths that each module imports, absolute within the crate.
    of: BTreeMap<Module, Vec<Module>>,
    /// Where re-exported names come from.
    exported: BTreeMap<Module, Module>,
}

impl Imports {
    fn of_crate(source: &Path) -> Self {
        let all = files(&["rs"]).into_iter().filter(|path| path.starts_with(source));
        let mut texts = BTreeMap::new();
        for path in all {
            let relative = path.strip_prefix(source).expect("it is below").with_extension("");
            let mut module: Module =
                relative.iter().map(|part| part.to_string_lossy().into_owned()).collect();
            module.pop_if(|last| matches!(last.as_str(), "lib" | "main" | "mod"));
            texts.insert(module, fs::read_to_string(&path).expect("text"));
        }
        Self::of_texts(&texts)
    }

    fn of_texts(texts: &BTreeMap<Module, String>) -> Self {
        let mut imports = Self { of: BTreeMap::new(), exported: BTreeMap::new() };
        for (module, text) in texts {
            // Unit tests may import anything.
            let text = text.split("#[cfg(test)]\nmod tests").next().expect("a part");
            let code: Vec<_> =
                text.lines().filter(|line| !line.trim_start().starts_with("//")).collect();
            let code = code.join(" ");
            let mut of_module = Vec::new();
            for statement in code.split(';') {
                let Some((before, tree)) = statement.rsplit_once("use ") else { continue };
                let is_public = before.trim_end().ends_with("pub");
                let before = before.trim_end();
                let begins = before.trim_start().is_empty() || before.ends_with(['}', ']', ')']);
                if !begins && !is_public {
                    continue;
                }
                for path in expand(&tree.replace(' ', "")) {
                    let Some(path) = absolute(module, &path, texts) else { continue };
                    if is_public && let Some(name) = path.last() {
                        let mut exported = module.clone();
                        exported.push(name.clone());
                        imports.exported.insert(exported, path);
                    } else {
                        of_module.push(path);
                    }
                }
            }
            imports.of.insert(module.clone(), of_module);
        }
        imports
    }

    /// The module that defines what a path names.
    fn definer(&self, path: &Module) -> Module {
        let mut path = path.clone();
        for _ in 0..8 {
            let known = (0..=path.len()).rev().find(|n| self.of.contains_key(&path[..*n]));
            let depth = known.expect("the crate's root is a module");
            let exported = path.get(..=depth).and_then(|name| self.exported.get(name));
            match exported {
                Some(from) => path = from.clone(),
                None => return path[..depth].to_vec(),
            }
        }
        panic!("{path:?} is exported in a circle");
    }

    /// A cycle of imports, if there is one: what is left after modules without imports, or not
    /// imported, are removed again and again.
    fn cycle(&self) -> Vec<Module> {
        let mut edges = BTreeSet::new();
        for (module, paths) in &self.of {
            let definers = paths.iter().map(|path| self.definer(path));
            edges.extend(definers.filter(|to| to != module).map(|to| (module.clone(), to)));
        }
        loop {
            let froms: BTreeSet<_> = edges.iter().map(|(from, _)| from.clone()).collect();
            let tos: BTreeSet<_> = edges.iter().map(|(_, to)| to.clone()).collect();
            let before = edges.len();
            edges.retain(|(from, to)| tos.contains(from) && froms.contains(to));
            if edges.len() == before {
                return edges.into_iter().map(|(from, _)| from).collect();
            }
        }
    }
}

/// The paths of a tree of imports without spaces.
fn expand(tree: &str) -> Vec<Vec<String>> {
    let Some((head, rest)) = tree.split_once('{') else {
        return vec![tree.split("::").map(str::to_owned).collect()];
    };
    let head: Vec<_> = head.split("::").filter(|p| !p.is_empty()).map(str::to_owned).collect();
    let body = &rest[..rest.rfind('}').unwrap_or(rest.len())];
    let (mut depth, mut start, mut parts) = (0, 0, Vec::new());
    for (at, c) in body.char_indices() {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => {
                parts.push(&body[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    parts.push(&body[start..]);
    let paths = parts.into_iter().filter(|part| !part.is_empty()).flat_map(expand);
    paths.map(|path| head.iter().cloned().chain(path).collect()).collect()
}

fn absolute(
    module: &Module,
    path: &[String],
    modules: &BTreeMap<Module, String>,
) -> Option<Module> {
    let supers = path.iter().take_while(|part| *part == "super").count();
    let (base, rest) = match path.first()?.as_str() {
        "crate" => (Vec::new(), &path[1..]),
        "self" => (module.clone(), &path[1..]),
        "super" => (module[..module.len().checked_sub(supers)?].to_vec(), &path[supers..]),
        first => {
            let mut child = module.clone();
            child.push(first.to_owned());
            modules.contains_key(&child).then(|| (module.clone(), path))?
        }
    };
    Some(base.into_iter().chain(rest.iter().cloned()).collect())
}

#[test]
fn tidy_modules_have_no_import_cycles() {
    let mut faults = Vec::new();
    for directory in layers() {
        let cycle = Imports::of_crate(&root().join(&directory).join("src")).cycle();
        let names: BTreeSet<_> = cycle.iter().map(|module| module.join("::")).collect();
        if !names.is_empty() {
            let names: Vec<_> = names.into_iter().collect();
            faults.push(format!("{directory}: {}", names.join(", ")));
        }
    }
    assert_none(&faults, "these modules are on a circle of imports, or between two");
}

#[test]
fn tidy_import_cycle_through_reexport_is_detected() {
    let module = |name: &str| name.split("::").map(str::to_owned).collect::<Module>();
    let cycle = |texts: &[(&str, &str)]| {
        let mut all = BTreeMap::from([(Module::new(), "pub use a::Exported;".to_owned())]);
        all.extend(texts.iter().map(|(name, text)| (module(name), (*text).to_owned())));
        Imports::of_texts(&all).cycle()
    };
    let (a, b) = (module("a"), module("b"));
    assert_eq!(
        cycle(&[("a", "struct Exported;"), ("b", "use crate::a::Exported;")]),
        [] as [Module; 0]
    );
    assert_eq!(
        cycle(&[("a", "use crate::b::B;"), ("b", "use super::a::{A, C};")]),
        [a.clone(), b.clone()]
    );
    assert_eq!(cycle(&[("a", "use crate::b::B;"), ("b", "use crate::Exported;")]), [a, b]);
}
