//! Sizes as people write and read them: binary, K M G T.
//!
//! Owns both directions. Never rounds what is parsed: `1.5G` is refused rather than taken for something near it.

/// Bytes of `text`: digits, and K, M, G or T for 1024 and its powers (`KiB`, `k` and the like are taken too).
pub fn parse_size(text: &str) -> Result<u64, String> {
    let text = text.trim();
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (number, unit) = text.split_at(digits);
    let number: u64 = number
        .parse()
        .map_err(|_| "a size is a whole number with K, M, G or T behind it, as 512M".to_owned())?;
    let shift = match unit.to_ascii_lowercase().as_str() {
        "" | "b" => 0,
        "k" | "kib" => 10,
        "m" | "mib" => 20,
        "g" | "gib" => 30,
        "t" | "tib" => 40,
        _ => return Err(format!("{unit:?} is no unit of size: K, M, G or T")),
    };
    let bytes = number.checked_mul(1 << shift);
    let bytes = bytes.filter(|b| *b <= i64::MAX as u64);
    bytes.ok_or_else(|| "the size is out of range".to_owned())
}

/// Bytes a second, at least 1.
pub fn parse_rate(text: &str) -> Result<u64, String> {
    match parse_size(text.trim().trim_end_matches("/s"))? {
        0 => Err("a rate of 0 would never copy anything; leave --rate out for no cap".to_owned()),
        rate => Ok(rate),
    }
}

/// For people: three digits or so, binary units.
pub fn show(bytes: u64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < units.len() {
        value /= 1024.0;
        unit += 1;
    }
    match unit {
        0 => format!("{bytes} B"),
        _ if value < 9.95 => format!("{value:.1} {}", units[unit]),
        _ => format!("{value:.0} {}", units[unit]),
    }
}

/// A duration for people: `42 s`, `3 min 5 s`, `2 h 10 min`, `3 d 4 h`.
pub fn show_seconds(seconds: u64) -> String {
    let (m, h, d) = (seconds / 60, seconds / 3600, seconds / 86_400);
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3600 => format!("{m} min {} s", seconds % 60),
        3600..86_400 => format!("{h} h {} min", m % 60),
        _ => format!("{d} d {} h", h % 24),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_binary() {
        assert_eq!(parse_size("0"), Ok(0));
        assert_eq!(parse_size("4096"), Ok(4096));
        assert_eq!(parse_size("64K"), Ok(65_536));
        assert_eq!(parse_size("100m"), Ok(100 << 20));
        assert_eq!(parse_size("2GiB"), Ok(2 << 30));
        assert_eq!(parse_size("3T"), Ok(3 << 40));
        for bad in [
            "",
            "G",
            "1.5G",
            "-1",
            "1 G",
            "9999999T",
            "12X",
            "18446744073709551616",
        ] {
            assert!(parse_size(bad).is_err(), "{bad}");
        }
        assert_eq!(parse_rate("10M/s"), Ok(10 << 20));
        assert!(parse_rate("0").is_err());
    }

    #[test]
    fn sizes_and_times_are_shown_short() {
        let shown: Vec<_> = [0, 1023, 1024, 10 << 20, 1536 << 20, u64::MAX]
            .map(show)
            .into();
        assert_eq!(
            shown,
            ["0 B", "1023 B", "1.0 KiB", "10 MiB", "1.5 GiB", "16 EiB"]
        );
        let times: Vec<_> = [0, 59, 61, 7260, 90_000].map(show_seconds).into();
        assert_eq!(times, ["0 s", "59 s", "1 min 1 s", "2 h 1 min", "1 d 1 h"]);
    }
}
