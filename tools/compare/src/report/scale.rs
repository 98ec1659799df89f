//! Axes: the position of a value, and the values that get a tick.

/// Maps values onto 0..=1 along an axis.
pub(super) struct Scale {
    log: bool,
    low: f64,
    high: f64,
    ticks: Vec<f64>,
}

/// Tolerance, so that rounding errors of a logarithm or a division do not add or lose a tick.
const SLACK: f64 = 1e-9;

impl Scale {
    /// Returns a scale from zero to the first tick at or above all values.
    pub(super) fn from_zero(values: impl Iterator<Item = f64>) -> Scale {
        let most = largest(values);
        let step = nice_step(most, 5);
        let high = (most / step - SLACK).ceil().max(1.0) * step;
        Scale { log: false, low: 0.0, high, ticks: linear_ticks(0.0, high, 5) }
    }

    /// Returns a scale from zero to exactly the largest value, for time, which ends with the run.
    pub(super) fn up_to(values: impl Iterator<Item = f64>) -> Scale {
        let high = largest(values);
        Scale { log: false, low: 0.0, high, ticks: linear_ticks(0.0, high, 8) }
    }

    /// Returns a logarithmic scale of whole decades around all values above zero.
    pub(super) fn decades(values: impl Iterator<Item = f64>) -> Scale {
        let (mut least, mut most) = (f64::INFINITY, 0.0_f64);
        for value in values.filter(|value| value.is_finite() && *value > 0.0) {
            least = least.min(value);
            most = most.max(value);
        }
        if most == 0.0 {
            (least, most) = (1.0, 10.0);
        }
        let first = (least.log10() + SLACK).floor() as i32;
        let last = ((most.log10() - SLACK).ceil() as i32).max(first + 1);
        let ticks = log_ticks(first, last);
        Scale { log: true, low: f64::from(first), high: f64::from(last), ticks }
    }

    /// Returns the position of a value, from 0 to 1, or `None` if the axis cannot show it, such as
    /// zero on a logarithmic axis. A value beyond an end is placed at that end.
    pub(super) fn at(&self, value: f64) -> Option<f64> {
        if !value.is_finite() || (self.log && value <= 0.0) {
            return None;
        }
        let value = if self.log { value.log10() } else { value };
        Some(((value - self.low) / (self.high - self.low)).clamp(0.0, 1.0))
    }

    /// Returns the values of the ticks, in rising order.
    pub(super) fn ticks(&self) -> &[f64] {
        &self.ticks
    }
}

/// Returns the largest finite value, or 1 if none is above zero.
fn largest(values: impl Iterator<Item = f64>) -> f64 {
    let most = values.filter(|value| value.is_finite()).fold(0.0, f64::max);
    if most > 0.0 { most } else { 1.0 }
}

/// Returns the smallest of 1, 2, 5, 10, … (times a power of ten) that divides `span` into at most
/// `parts`.
fn nice_step(span: f64, parts: u32) -> f64 {
    let least = span / f64::from(parts);
    let decade = 10_f64.powf(least.log10().floor());
    let nice = [1.0, 2.0, 5.0].into_iter().find(|nice| least <= nice * decade * (1.0 + SLACK));
    nice.unwrap_or(10.0) * decade
}

/// Returns the multiples of a nice step within a range: at most `parts` + 1 of them.
fn linear_ticks(low: f64, high: f64, parts: u32) -> Vec<f64> {
    let span = high - low;
    if !span.is_finite() || span <= 0.0 {
        return Vec::new();
    }
    let step = nice_step(span, parts);
    let first = (low / step - SLACK).ceil() as i64;
    let last = (high / step + SLACK).floor() as i64;
    (first..=last).map(|multiple| multiple as f64 * step).collect()
}

/// Returns every power of ten, and over at most two decades also twice and five times each.
fn log_ticks(first: i32, last: i32) -> Vec<f64> {
    let factors: &[f64] = if last - first <= 2 { &[1.0, 2.0, 5.0] } else { &[1.0] };
    let mut ticks: Vec<f64> = (first..last)
        .flat_map(|power| factors.iter().map(move |factor| factor * 10_f64.powi(power)))
        .collect();
    ticks.push(10_f64.powi(last));
    ticks
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(found: &[f64], expected: &[f64]) -> bool {
        found.len() == expected.len()
            && found.iter().zip(expected).all(|(f, e)| (f - e).abs() <= 1e-9 * e.abs().max(1.0))
    }

    #[test]
    fn linear_ticks_are_multiples_of_one_two_or_five() {
        let table: [(f64, f64, u32, &[f64]); 8] = [
            (0.0, 10.0, 5, &[0.0, 2.0, 4.0, 6.0, 8.0, 10.0]),
            (0.0, 1.0, 5, &[0.0, 0.2, 0.4, 0.6, 0.8, 1.0]),
            (0.0, 37_000.0, 5, &[0.0, 10_000.0, 20_000.0, 30_000.0]),
            (3.0, 17.0, 5, &[5.0, 10.0, 15.0]),
            (0.0, 0.03, 5, &[0.0, 0.01, 0.02, 0.03]),
            (5.0, 5.0, 5, &[]),
            (0.0, f64::NAN, 5, &[]),
            (0.0, f64::INFINITY, 5, &[]),
        ];
        for (low, high, parts, expected) in table {
            let found = linear_ticks(low, high, parts);
            assert!(close(&found, expected), "{low}..{high}: {found:?}");
        }
    }

    #[test]
    fn log_ticks_mark_decades_and_subdivide_short_ranges() {
        assert!(close(&log_ticks(2, 3), &[100.0, 200.0, 500.0, 1000.0]));
        assert!(close(&log_ticks(1, 4), &[10.0, 100.0, 1e3, 1e4]));
    }

    #[test]
    fn log_scale_spans_whole_decades() {
        let scale = Scale::decades([250.0, 0.0, f64::NAN, 1000.0].into_iter());
        assert!(close(scale.ticks(), &[100.0, 200.0, 500.0, 1000.0]));
        assert_eq!(scale.at(100.0), Some(0.0));
        assert_eq!(scale.at(1000.0), Some(1.0));
        assert_eq!(scale.at(0.0), None);
        assert_eq!(scale.at(f64::NAN), None);
    }

    #[test]
    fn scale_without_values_has_default_ticks() {
        let nothing = || [f64::NAN, 0.0].into_iter();
        for scale in
            [Scale::from_zero(nothing()), Scale::up_to(nothing()), Scale::decades(nothing())]
        {
            assert!(scale.ticks().len() >= 2);
            assert!(scale.at(1.0).is_some());
        }
    }

    #[test]
    fn linear_scale_from_zero_ends_on_tick() {
        let scale = Scale::from_zero([37_000.0].into_iter());
        assert!(close(scale.ticks(), &[0.0, 10_000.0, 20_000.0, 30_000.0, 40_000.0]));
        assert_eq!(scale.at(40_000.0), Some(1.0));
    }
}
