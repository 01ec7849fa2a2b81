//! `edgehub store`: what waits on disk, whether it is sound, and dropping it.

use std::io;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use clap::{Args, Subcommand};
use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::{CHECK_FAILED, Failure, UNAVAILABLE, load, print};
use crate::diagnostic::nearest;
use crate::message::Endpoint;
use crate::run::{STORE_DIR, Stopped, note_purged, raise_file_limit};
use crate::store::Step;
use crate::store::inspect::verify::{self, Damage, Verdict};
use crate::store::inspect::{Inspection, LaneReport, inspect};

/// Rounds of keeper and writer until a purge is noted and what it frees is given back.
const ROUNDS: usize = 4;

#[derive(Debug, Subcommand)]
pub(super) enum StoreCommand {
    /// Show what waits per endpoint and priority; reads only, a hub may be running
    Inspect {
        #[command(flatten)]
        data: DataArg,
        /// One JSON object instead of text
        #[arg(long)]
        json: bool,
    },
    /// Read everything and check every checksum; reads only, a hub may be running
    Verify(DataArg),
    /// Drop everything that waits for one endpoint; the hub must be stopped
    Purge {
        /// The configuration file
        #[arg(long)]
        config: PathBuf,
        /// As `store inspect` shows it: MODULE/INPUT, $upstream/SENDER, or $upstream for all
        #[arg(long)]
        endpoint: String,
    },
}

#[derive(Debug, Args)]
pub(super) struct DataArg {
    /// The hub's `data_dir`
    #[arg(long)]
    data: PathBuf,
}

pub(super) fn store(command: &StoreCommand) -> Result<(), Failure> {
    // Each segment is an open file.
    raise_file_limit();
    match command {
        StoreCommand::Inspect { data, json } => show(&data.data, *json),
        StoreCommand::Verify(data) => verify(&data.data),
        StoreCommand::Purge { config, endpoint } => purge(config, endpoint),
    }
}

fn show(data: &Path, as_json: bool) -> Result<(), Failure> {
    let found = look(data)?;
    if as_json {
        return print(&json_of(&found).to_string());
    }
    for line in lines_of(&found) {
        print(&line)?;
    }
    Ok(())
}

fn look(data: &Path) -> Result<Inspection, Failure> {
    let dir = data.join(STORE_DIR);
    inspect(&dir).map_err(|error| unreadable(&dir, &error))
}

fn unreadable(dir: &Path, error: &io::Error) -> Failure {
    let text = error.to_string();
    let line = if text.starts_with(&*dir.to_string_lossy()) {
        text
    } else {
        format!("{}: {text}", dir.display())
    };
    Failure::new(UNAVAILABLE, line)
}

fn json_of(found: &Inspection) -> Value {
    let row = |lane: &LaneReport| {
        json!({
            "endpoint": lane.endpoint,
            "priority": lane.priority.to_string(),
            "messages": lane.messages,
            "bytes": lane.bytes,
            "oldest_seq": lane.oldest.map(|(seq, _)| seq),
            "oldest_time": lane.oldest.map(|(_, ms)| time_of(ms)),
            "oldest_age_seconds": lane.oldest.map(|(_, ms)| age_s(ms)),
            "segments": lane.segments,
        })
    };
    let sessions = found.sessions.iter().map(
        |(identity, subscriptions)| json!({ "identity": identity, "filters": subscriptions.len() }),
    );
    json!({
        "store_id": format!("{:016x}", found.store_id),
        "closed": found.was_closed,
        "queues": found.lanes.iter().map(row).collect::<Vec<_>>(),
        "segments": found.segments,
        "segment_bytes": found.segment_bytes,
        "spares": found.spares,
        "spare_bytes": found.spare_bytes,
        "sessions": sessions.collect::<Vec<_>>(),
        "damage": found.damage,
        "remarks": found.remarks,
    })
}

fn lines_of(found: &Inspection) -> Vec<String> {
    let closed = if found.was_closed {
        "yes"
    } else {
        "no: a hub runs on it, or ended without closing it"
    };
    let mut lines = vec![
        format!("store     {:016x}", found.store_id),
        format!("closed    {closed}"),
        format!(
            "in use    {} segments, {} bytes",
            found.segments, found.segment_bytes
        ),
        format!(
            "spare     {} segments, {} bytes",
            found.spares, found.spare_bytes
        ),
    ];
    let header = [
        "ENDPOINT", "PRIORITY", "MESSAGES", "BYTES", "SEGMENTS", "OLDEST", "AGE",
    ];
    let mut rows = vec![header.map(str::to_owned)];
    rows.extend(found.lanes.iter().map(|lane| {
        let oldest = |text: fn(u64) -> String| {
            lane.oldest
                .map_or_else(|| "-".to_owned(), |(_, ms)| text(ms))
        };
        [
            lane.endpoint.clone(),
            lane.priority.to_string(),
            lane.messages.to_string(),
            lane.bytes.to_string(),
            lane.segments.to_string(),
            oldest(time_of),
            oldest(age_of),
        ]
    }));
    if found.lanes.is_empty() {
        lines.extend([String::new(), "no endpoint has a queue yet".to_owned()]);
    } else {
        lines.push(String::new());
        lines.extend(aligned(&rows, &[1, 2, 3, 4]));
    }
    if !found.sessions.is_empty() {
        let mut rows = vec![["SESSION", "FILTERS"].map(str::to_owned)];
        let sessions = found.sessions.iter();
        rows.extend(sessions.map(|(name, filters)| [name.clone(), filters.len().to_string()]));
        lines.push(String::new());
        lines.extend(aligned(&rows, &[1]));
    }
    if !found.damage.is_empty() || !found.remarks.is_empty() {
        lines.push(String::new());
    }
    lines.extend(
        found
            .damage
            .iter()
            .map(|damage| format!("damage: {damage}")),
    );
    lines.extend(
        found
            .remarks
            .iter()
            .map(|remark| format!("remark: {remark}")),
    );
    lines
}

/// Rows as columns of one width each, those in `numbers` to the right.
fn aligned<const N: usize>(rows: &[[String; N]], numbers: &[usize]) -> Vec<String> {
    let width = |at: usize| {
        let cells = rows.iter().filter_map(|row| row.get(at));
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let line = |row: &[String; N]| {
        let cells = row.iter().enumerate().map(|(at, cell)| {
            let width = width(at);
            if numbers.contains(&at) {
                format!("{cell:>width$}")
            } else {
                format!("{cell:<width$}")
            }
        });
        let cells: Vec<_> = cells.collect();
        cells.join("  ").trim_end().to_owned()
    };
    rows.iter().map(line).collect()
}

fn time_of(ms: u64) -> String {
    let seconds = i64::try_from(ms / 1000).unwrap_or(i64::MAX);
    OffsetDateTime::from_unix_timestamp(seconds)
        .ok()
        .and_then(|time| time.format(&Rfc3339).ok())
        .unwrap_or_else(|| format!("{ms} ms since 1970"))
}

fn age_s(ms: u64) -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.map_or(0, |now| now.as_secs()).saturating_sub(ms / 1000)
}

fn age_of(ms: u64) -> String {
    let age = age_s(ms);
    let (days, hours, minutes) = (age / 86_400, age / 3600 % 24, age / 60 % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{age}s"),
        (0, 0, _) => format!("{minutes}m{:02}s", age % 60),
        (0, ..) => format!("{hours}h{minutes:02}m"),
        _ => format!("{days}d{hours:02}h"),
    }
}

fn verify(data: &Path) -> Result<(), Failure> {
    let dir = data.join(STORE_DIR);
    let verdict = verify::verify(&dir).map_err(|error| unreadable(&dir, &error))?;
    let remarks = verdict.remarks.iter();
    let mut lines: Vec<String> = remarks.map(|remark| format!("remark: {remark}")).collect();
    lines.extend(verdict.damaged.iter().map(damage_line));
    lines.push(summary(&verdict));
    if !verdict.damaged.is_empty() {
        return Err(Failure {
            code: CHECK_FAILED,
            lines,
        });
    }
    for line in lines {
        print(&line)?;
    }
    Ok(())
}

fn summary(verdict: &Verdict) -> String {
    format!(
        "{} segments, {} frames, {} bytes, {} values of the small state: {} damaged",
        verdict.segments,
        verdict.frames,
        verdict.bytes,
        verdict.values,
        verdict.damaged.len()
    )
}

fn damage_line(damage: &Damage) -> String {
    let at = damage
        .offset
        .map_or_else(String::new, |at| format!(" at byte {at}"));
    let seqs = match damage.seqs {
        Some((first, last)) if first == last => format!(", seq {first}"),
        Some((first, last)) => format!(", seq {first} to {last}"),
        None => String::new(),
    };
    let lanes = damage.lanes.iter();
    let lanes: Vec<_> = lanes
        .map(|(endpoint, priority)| format!("{endpoint} priority {priority}"))
        .collect();
    let lanes = if lanes.is_empty() {
        String::new()
    } else {
        format!(" of {}", lanes.join(", "))
    };
    format!("damaged: {}{at}: {}{seqs}{lanes}", damage.file, damage.what)
}

fn purge(config: &Path, name: &str) -> Result<(), Failure> {
    let (config, _) = load(config)?;
    let before = look(&config.data_dir)?;
    let known = before.endpoints().into_iter().filter(|known| {
        // `$upstream` stands for all senders' parts of it.
        *known == name
            || (name == "$upstream"
                && Endpoint::parse(known).is_some_and(|endpoint| endpoint.is_upward()))
    });
    let known: Vec<_> = known.collect();
    if known.is_empty() {
        return Err(unknown(name, &before));
    }
    let stopped = Stopped::open(&config)?;
    let (store, clock) = (&stopped.store, stopped.clock);
    for lost in &stopped.opened.lost {
        print(&format!("damage: {lost}"))?;
    }
    store.keep_step(clock.ms(), true);
    let endpoints = known.iter().filter_map(|known| Endpoint::parse(known));
    let messages: usize = endpoints.map(|endpoint| store.purge(&endpoint)).sum();
    for _ in 0..ROUNDS {
        // It asks for the note that the purge needs.
        let now = clock.now();
        store.sweep((now.ms, now.wall_ms), &mut Vec::new());
        if let Step::Blocked { .. } = store.write_step(now.ms) {
            break;
        }
        store.keep_step(now.ms, true);
    }
    store.end(clock.ms());
    let after = look(&config.data_dir)?;
    let waits = |lane: &&LaneReport| known.contains(&&*lane.endpoint) && lane.messages > 0;
    if after.lanes.iter().any(|lane| waits(&lane)) {
        let line = format!("{name} keeps its messages: the disk is full or refuses the note");
        return Err(Failure::new(UNAVAILABLE, line));
    }
    if let Err(error) = note_purged(&config, messages as u64) {
        let line = format!("the metrics will not count them: {error}");
        return Err(Failure::new(UNAVAILABLE, line));
    }
    print(&format!("{messages} messages of {name} dropped"))
}

fn unknown(name: &str, found: &Inspection) -> Failure {
    let known = found.endpoints();
    let mut lines = vec![format!("there is no endpoint {name} in the store")];
    if let Some(near) = nearest(name, known.iter().copied()) {
        lines.push(format!("did you mean {near}?"));
    }
    let known: Vec<_> = known.into_iter().collect();
    lines.push(if known.is_empty() {
        "the store has no endpoint at all".to_owned()
    } else {
        format!("it has: {}", known.join(", "))
    });
    Failure {
        code: CHECK_FAILED,
        lines,
    }
}
