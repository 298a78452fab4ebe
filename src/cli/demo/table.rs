//! The table of results that is printed at the end.

use comfy_table::{Cell, CellAlignment, Table, presets::UTF8_FULL_CONDENSED};
use pushcast::domain::{Outcome, ProviderId};
use sandbox::{Answer, ProviderStatistics};

use super::{
    expected::Expected,
    measure::{Latency, Measured, format_duration},
    verify::Found,
    watch::Sample,
    world::World,
};

/// The data of the table.
pub struct ReportTable<'a> {
    /// For pushcast's metrics and settings.
    pub world: &'a World,
    /// What follows from what was published.
    pub expected: &'a Expected,
    /// What was found.
    pub found: &'a Found,
    /// When it was published.
    pub measured: &'a Measured,
    /// How much had arrived when.
    pub samples: &'a [Sample],
}

impl ReportTable<'_> {
    /// Builds the table.
    pub fn table(&self) -> Table {
        let mut table = Table::new();
        table.load_style(UTF8_FULL_CONDENSED).set_header(["", "Expo", "FCM", "total"]);
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
        let invalid = &self.found.collected.invalid;
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
        counted(table, "messages answered with 503 or 429", |provider| {
            let of = self.statistics(provider);
            of.answered(Answer::Down) + of.answered(Answer::Throttled)
        });
        counted(table, "duplicates seen by the sandbox", |provider| self.statistics(provider).duplicates);
        counted(table, "reminders sent, for doses and regimens", |provider| {
            self.found
                .pushes
                .iter()
                .filter(|push| push.provider == provider && push.name.starts_with("dose:"))
                .count() as u64
        });
    }

    fn rates(&self, table: &mut Table) {
        each(table, "rate allowed, messages/s", |provider| grouped(u64::from(self.world.rate(provider))));
        each(table, "rate sustained during a broadcast", |provider| {
            let allowed = f64::from(self.world.rate(provider));
            let rate = self.measured.rate(self.samples, provider);
            rate.map_or("–".to_owned(), |rate| format!("{rate:.0} ({:.1} %)", 100.0 * rate / allowed))
        });
        each(table, "most messages in any second", |provider| {
            grouped(self.statistics(provider).peak_per_second)
        });
    }

    fn times(&self, table: &mut Table) {
        let pushes = &self.found.pushes;
        let cell = |latency: Option<Latency>| latency.map_or("–".to_owned(), |latency| latency.to_string());
        each(table, "dose published: record → provider, p50 / p99", |provider| {
            cell(self.measured.reminders(pushes, provider, false))
        });
        each(table, "… the slowest during a fault of the provider", |provider| {
            let slowest = self.measured.reminders(pushes, provider, true);
            slowest.map_or("–".to_owned(), |latency| format_duration(latency.max))
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
        each(table, "dose of a regimen: due minute → provider", |provider| {
            cell(self.measured.doses(pushes, provider, &regimens))
        });
        each(table, "post published: record → provider, p50 / p99", |provider| {
            cell(self.measured.posts(pushes, provider))
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

/// A number with commas between thousands.
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
    fn thousands_are_separated() {
        assert_eq!(
            [0, 999, 1_000, 20_000, 1_234_567].map(grouped),
            ["0", "999", "1,000", "20,000", "1,234,567"]
        );
    }
}
