//! The table at the end.

use comfy_table::{Cell, CellAlignment, Table, presets::UTF8_FULL_CONDENSED};
use pushcast::domain::{Outcome, ProviderId};
use sandbox::{Answer, ProviderStatistics};

use super::{
    expected::Expected,
    measure::{Latency, Measured, shown},
    verify::Found,
    watch::Sample,
    world::World,
};

/// What there is to tell.
pub struct ReportTable<'a> {
    /// For pushcast's own counts.
    pub world: &'a World,
    /// What was published.
    pub expected: &'a Expected,
    /// What was found.
    pub found: &'a Found,
    /// When it was published.
    pub measured: &'a Measured,
    /// When how much had arrived.
    pub samples: &'a [Sample],
}

impl ReportTable<'_> {
    /// The table.
    pub fn table(&self) -> Table {
        let mut table = Table::new();
        table.load_style(UTF8_FULL_CONDENSED).set_header(["", "Expo", "FCM", "together"]);
        for column in table.column_iter_mut().skip(1) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        self.tokens(&mut table);
        self.messages(&mut table);
        self.rates(&mut table);
        self.times(&mut table);
        table
    }

    fn tokens(&self, table: &mut Table) {
        let census = |provider| self.found.census.iter().find(|of| of.provider == provider);
        counted(table, "tokens registered", |provider| {
            census(provider).map_or(0, |of| of.active + of.inactive)
        });
        counted(table, "tokens active at the end", |provider| census(provider).map_or(0, |of| of.active));
        let invalid = &self.found.noted.invalid;
        let of =
            |provider| invalid.iter().filter(|dead| dead.token.kind().provider() == provider).count() as u64;
        counted(table, "invalid tokens published", of);
        row(
            table,
            "invalid tokens revoked",
            ["".to_owned(), "".to_owned(), grouped(self.world.token_changes("revoked"))],
        );
    }

    fn messages(&self, table: &mut Table) {
        for outcome in Outcome::ALL {
            counted(table, &format!("messages {}", outcome.label()), |provider| {
                self.world.messages(provider, outcome.label())
            });
        }
        counted(table, "messages tried again: 503, 429", |provider| {
            let of = self.statistics(provider);
            of.answered(Answer::Down) + of.answered(Answer::Throttled)
        });
        counted(table, "doubles seen by the sandbox", |provider| self.statistics(provider).duplicates);
        counted(table, "doses rung, reminders included", |provider| {
            self.found
                .pushes
                .iter()
                .filter(|push| push.provider == provider && push.name.starts_with("dose:"))
                .count() as u64
        });
    }

    fn rates(&self, table: &mut Table) {
        each(table, "rate allowed, messages/s", |provider| grouped(u64::from(self.world.rate(provider))));
        each(table, "rate kept while there was work", |provider| {
            let allowed = f64::from(self.world.rate(provider));
            let kept = self.measured.rate(self.samples, provider);
            kept.map_or("–".to_owned(), |kept| format!("{kept:.0} ({:.1} %)", 100.0 * kept / allowed))
        });
        each(table, "most in any second", |provider| grouped(self.statistics(provider).peak_per_second));
    }

    /// Times are measured from the record to the sandbox, one by one.
    fn times(&self, table: &mut Table) {
        let pushes = &self.found.pushes;
        let told = |latency: Option<Latency>| latency.map_or("–".to_owned(), |latency| latency.to_string());
        each(table, "reminder: record → provider, p50 / p99", |provider| {
            told(self.measured.reminders(pushes, provider, false))
        });
        each(table, "… the slowest while its provider was attacked", |provider| {
            let slowest = self.measured.reminders(pushes, provider, true);
            slowest.map_or("–".to_owned(), |latency| shown(latency.max))
        });
        let regimens: Vec<&str> = self
            .expected
            .pushes
            .keys()
            .map(String::as_str)
            .filter(|name| {
                name.starts_with("dose:")
                    && *name != "dose:twice"
                    && !self.measured.reminders.contains_key(*name)
            })
            .collect();
        each(table, "dose: its minute → provider (a tick a second)", |provider| {
            told(self.measured.doses(pushes, provider, &regimens))
        });
        each(table, "post: record → provider, p50 / p99", |provider| {
            told(self.measured.posts(pushes, provider))
        });
    }

    fn statistics(&self, provider: ProviderId) -> &ProviderStatistics {
        match provider {
            ProviderId::Expo => &self.found.statistics.expo,
            ProviderId::Fcm => &self.found.statistics.fcm,
        }
    }
}

fn row(table: &mut Table, name: &str, cells: [String; 3]) {
    table.add_row([name.to_owned()].into_iter().chain(cells).map(Cell::new));
}

fn each(table: &mut Table, name: &str, of: impl Fn(ProviderId) -> String) {
    row(table, name, [of(ProviderId::Expo), of(ProviderId::Fcm), String::new()]);
}

fn counted(table: &mut Table, name: &str, of: impl Fn(ProviderId) -> u64) {
    let [expo, fcm] = ProviderId::ALL.map(of);
    row(table, name, [expo, fcm, expo + fcm].map(grouped));
}

/// A number with a comma between thousands.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() * 4 / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thousands_are_told_apart() {
        assert_eq!(
            [0, 999, 1_000, 20_000, 1_234_567].map(grouped),
            ["0", "999", "1,000", "20,000", "1,234,567"]
        );
    }
}
