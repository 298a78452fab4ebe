//! What is shown while it runs, on stderr: bars where there is a terminal, plain lines where there is none.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use tokio::time::Instant;

const BAR: &str = "{msg:24} {bar:32} {pos:>6}/{len:6} {eta:>4}";

/// The screen.
pub struct Screen {
    bars: MultiProgress,
    started: Instant,
}

/// A bar on it.
pub struct Bar<'a> {
    screen: &'a Screen,
    shown: ProgressBar,
    /// The last quarter that a plain line was written for.
    quarter: AtomicU64,
}

impl Screen {
    /// An empty one. Its clock begins.
    pub fn new() -> Self {
        Self { bars: MultiProgress::new(), started: Instant::now() }
    }

    /// A line that stays, with the seconds since the start.
    pub fn say(&self, line: impl AsRef<str>) {
        self.write(&format!("{:5.1} s  {}", self.started.elapsed().as_secs_f64(), line.as_ref()));
    }

    /// A bar, from nothing to `len`.
    pub fn bar(&self, what: impl Into<String>, len: u64) -> Bar<'_> {
        let style = ProgressStyle::with_template(BAR).unwrap_or_else(|_| ProgressStyle::default_bar());
        let shown = self.bars.add(
            ProgressBar::new(len).with_style(style.progress_chars("█▉▊▋▌▍▎▏ ")).with_message(what.into()),
        );
        Bar { screen: self, shown, quarter: AtomicU64::new(0) }
    }

    fn write(&self, line: &str) {
        // A screen that can't be written to is not worth failing for.
        if self.bars.is_hidden() {
            eprintln!("{line}");
        } else {
            drop(self.bars.println(line));
        }
    }
}

impl Bar<'_> {
    /// So far.
    pub fn at(&self, position: u64) {
        self.shown.set_position(position);
        let quarter = quarter(position, self.shown.length().unwrap_or_default());
        if self.screen.bars.is_hidden() && self.quarter.swap(quarter, Relaxed) < quarter {
            self.screen.say(format!("{:24} {:3} %  {position}", self.shown.message(), quarter * 25));
        }
    }
}

impl Drop for Bar<'_> {
    /// It goes; what came of it is said in a line.
    fn drop(&mut self) {
        self.shown.finish_and_clear();
    }
}

fn quarter(position: u64, len: u64) -> u64 {
    (position * 4).checked_div(len).map_or(4, |quarter| quarter.min(4))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quarters_are_reached_when_they_are_full() {
        assert_eq!([0, 24, 25, 99, 100, 101].map(|position| quarter(position, 100)), [0, 0, 1, 3, 4, 4]);
        assert_eq!(quarter(0, 0), 4);
    }
}
