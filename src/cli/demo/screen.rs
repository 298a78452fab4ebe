//! Progress on standard error: bars on a terminal, plain lines elsewhere.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use tokio::time::Instant;

const BAR: &str = "{msg:24} {bar:32} {pos:>6}/{len:6} {eta:>4}";

/// Standard error, with a clock.
pub struct Screen {
    bars: MultiProgress,
    started: Instant,
}

/// A progress bar, removed when it is dropped.
pub struct Bar<'a> {
    screen: &'a Screen,
    bar: ProgressBar,
    /// The last quarter that a plain line was printed for.
    quarter: AtomicU64,
}

impl Screen {
    /// Starts the clock.
    pub fn new() -> Self {
        Self { bars: MultiProgress::new(), started: Instant::now() }
    }

    /// Prints a line with the seconds since the start.
    pub fn print(&self, line: impl AsRef<str>) {
        self.write(&format!("{:5.1} s  {}", self.started.elapsed().as_secs_f64(), line.as_ref()));
    }

    /// Adds a bar from 0 to `len`.
    pub fn bar(&self, name: impl Into<String>, len: u64) -> Bar<'_> {
        let style = ProgressStyle::with_template(BAR).unwrap_or_else(|_| ProgressStyle::default_bar());
        let bar = self.bars.add(
            ProgressBar::new(len).with_style(style.progress_chars("█▉▊▋▌▍▎▏ ")).with_message(name.into()),
        );
        Bar { screen: self, bar, quarter: AtomicU64::new(0) }
    }

    fn write(&self, line: &str) {
        // The demo does not fail because its progress can't be printed.
        if self.bars.is_hidden() {
            eprintln!("{line}");
        } else {
            drop(self.bars.println(line));
        }
    }
}

impl Bar<'_> {
    /// Moves the bar to this position.
    pub fn set(&self, position: u64) {
        self.bar.set_position(position);
        let quarter = quarter(position, self.bar.length().unwrap_or_default());
        if self.screen.bars.is_hidden() && self.quarter.swap(quarter, Relaxed) < quarter {
            self.screen.print(format!("{:24} {:3} %  {position}", self.bar.message(), quarter * 25));
        }
    }
}

impl Drop for Bar<'_> {
    /// The result is printed as a line, so the bar is removed.
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

fn quarter(position: u64, len: u64) -> u64 {
    (position * 4).checked_div(len).map_or(4, |quarter| quarter.min(4))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quarter_is_reached_when_it_is_full() {
        assert_eq!([0, 24, 25, 99, 100, 101].map(|position| quarter(position, 100)), [0, 0, 1, 3, 4, 4]);
        assert_eq!(quarter(0, 0), 4);
    }
}
