//! The table of figures: a line a figure, a column a system.

use serde_json::{Value, json};

pub const EXT4: &str = "ext4 on loop";
pub const ALONE: &str = "lockstep";
pub const MIRRORED: &str = "with a mirror";
pub const SYNC: &str = "in sync mode";

/// One line of the table.
pub struct Line {
    figure: String,
    unit: &'static str,
    /// By system, in the order they were measured; one a round.
    values: Vec<(&'static str, Vec<f64>)>,
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[sorted.len() / 2]
}

#[derive(Default)]
pub struct Figures(Vec<Line>);

impl Figures {
    /// Adds a value, and tells it.
    pub fn put(&mut self, figure: &str, unit: &'static str, system: &'static str, value: f64) {
        eprintln!("{figure:42} {system:18} {value:12.1} {unit}");
        let at = self.0.iter().position(|line| line.figure == figure);
        let at = at.unwrap_or_else(|| {
            self.0.push(Line {
                figure: figure.to_owned(),
                unit,
                values: Vec::new(),
            });
            self.0.len() - 1
        });
        let values = &mut self.0[at].values;
        match values.iter_mut().find(|(name, _)| *name == system) {
            Some((_, values)) => values.push(value),
            None => values.push((system, vec![value])),
        }
    }

    /// For people: medians.
    pub fn table(&self) -> String {
        let mut text = format!(
            "{:42} {:>14} {:>14} {:>14} {:>14}  unit\n",
            "figure", EXT4, ALONE, MIRRORED, SYNC
        );
        for line in &self.0 {
            let cell = |system: &str| {
                let found = line.values.iter().find(|(s, _)| *s == system);
                found.map_or(String::new(), |(_, v)| format!("{:.1}", median(v)))
            };
            text += &format!(
                "{:42} {:>14} {:>14} {:>14} {:>14}  {}\n",
                line.figure,
                cell(EXT4),
                cell(ALONE),
                cell(MIRRORED),
                cell(SYNC),
                line.unit
            );
        }
        text
    }

    /// For programs: every value.
    pub fn json(&self, placement: &str) -> Value {
        let lines = self.0.iter().map(|line| {
            let values: serde_json::Map<_, _> = line
                .values
                .iter()
                .map(|(system, values)| ((*system).to_owned(), json!(values)))
                .collect();
            json!({"figure": line.figure, "unit": line.unit, "values": values})
        });
        json!({"version": 2, "placement": placement, "figures": lines.collect::<Vec<_>>()})
    }
}
