//! The trusted clock, by which messages expire.
//!
//! An expiry is an absolute time, so it needs a clock that holds across restarts. The system's
//! clock alone is none: it may start in 1970 and may be set at any time. The trusted time runs by
//! the monotonic clock and never goes back; the system's clock only moves it forward. A step of
//! at most a day is taken at once, a larger one when it has held for ten minutes, any step while
//! no plausible time is known.
//!
//! A step while running is no time that passed. So messages stored before it in this uptime
//! expire that much later than their frames say: a [`Shift`]. Messages of earlier uptimes are
//! not shifted, as the step may be the time the device was off; but those stored while the
//! trusted time was a mere lower bound (see [`TrustedClock::is_trusted`]) are, in whichever
//! uptime the time becomes known. So only a wrong time that was believed can make a message
//! expire early, and none of the uptime that believed it; any other doubt makes it late.

use serde::{Deserialize, Serialize};

/// 2026-01-01T00:00:00Z in milliseconds since 1970: an earlier time is not believed.
pub const PLAUSIBLE_MS: u64 = 1_767_225_600_000;

/// 2100-01-01T00:00:00Z in milliseconds since 1970: this and any later time is not believed.
pub const IMPLAUSIBLE_MS: u64 = 4_102_444_800_000;

/// Largest step of the system's clock that is taken at once, in milliseconds: a day.
pub const STEP_MS_MAX: u64 = 24 * 3600 * 1000;

/// How long a larger step must hold, in milliseconds of the monotonic clock: ten minutes.
pub const SETTLE_MS: u64 = 10 * 60 * 1000;

/// Most shifts that are kept; beyond it the two oldest become one.
pub const SHIFTS_MAX: usize = 64;

/// How long [`TrustedClock::observe`] may ask for no save, in milliseconds: what a crash may lose.
pub const SAVE_EVERY_MS: u64 = 60_000;

/// A system's clock ahead by no more than this is not followed, in milliseconds.
const AHEAD_MS: u64 = 500;

/// Up to this a clock behind agrees and a step that varies is the same step, in milliseconds.
const AGREE_MS: u64 = 1000;

/// Messages that expire later than their frames say. Shifts of the same message add up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shift {
    /// Sequence number of the first message.
    #[serde(rename = "from")]
    pub from_seq: u64,
    /// Sequence number after the last message.
    #[serde(rename = "to")]
    pub to_seq: u64,
    /// How much later, in milliseconds: not seconds, so that rounding does not add up.
    pub ms: u64,
}

/// What must outlive the process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Saved {
    /// The trusted time, in milliseconds since 1970.
    pub trusted_ms: u64,
    /// The first message that was stored while the trusted time was a lower bound.
    pub unsure_seq: Option<u64>,
    /// The shifts, oldest first.
    pub shifts: Vec<Shift>,
}

/// A step of more than a day that has not held for long enough.
#[derive(Debug, Clone, Copy)]
struct Pending {
    since_boot_ms: u64,
    ahead_ms: u64,
}

/// The trusted clock. Time is an argument: `boot_ms`, the monotonic clock, goes on while the
/// device sleeps and starts anywhere; `wall_ms`, the system's clock, counts milliseconds since
/// 1970 and may be anything.
#[derive(Debug)]
pub struct TrustedClock {
    /// The trusted time at the monotonic time.
    base_ms: u64,
    base_boot_ms: u64,
    first_seq: u64,
    /// As in [`Saved`]; `None` once the system's clock agreed or was followed in this uptime.
    unsure_seq: Option<u64>,
    pending: Option<Pending>,
    shifts: Vec<Shift>,
    save_asked_boot_ms: u64,
}

impl TrustedClock {
    /// The clock of an uptime whose first message will have `first_seq`. What it then holds must
    /// be saved before that message is stored.
    #[must_use]
    pub fn new(boot_ms: u64, wall_ms: u64, first_seq: u64, saved: Option<Saved>) -> Self {
        let fresh_ms = if wall_ms < PLAUSIBLE_MS { wall_ms } else { 0 };
        let (trusted_ms, unsure_seq, shifts) = saved.map_or((fresh_ms, None, vec![]), |saved| {
            (saved.trusted_ms, saved.unsure_seq, saved.shifts)
        });
        let mut clock = Self {
            base_ms: trusted_ms,
            base_boot_ms: boot_ms,
            first_seq,
            unsure_seq: Some(unsure_seq.map_or(first_seq, |seq| seq.min(first_seq))),
            pending: None,
            shifts: Vec::new(),
            save_asked_boot_ms: boot_ms,
        };
        for mut shift in shifts {
            // The end of the log may be lost; its numbers are then given again.
            shift.to_seq = shift.to_seq.min(first_seq);
            clock.record(shift);
        }
        clock.observe(boot_ms, wall_ms, first_seq);
        clock
    }

    /// Compares the clocks, which is due about once a second; `next_seq` is the number of the
    /// next message. Returns whether to [`save`](Self::save) now, before any message expires.
    pub fn observe(&mut self, boot_ms: u64, wall_ms: u64, next_seq: u64) -> bool {
        let now_ms = self.now_ms(boot_ms);
        let before = (self.base_ms, self.unsure_seq, self.pending.is_some());
        let plausible = (PLAUSIBLE_MS..IMPLAUSIBLE_MS).contains(&wall_ms);
        let ahead_ms = wall_ms.saturating_sub(now_ms);
        let agrees = ahead_ms == 0 || (self.unsure_seq.is_none() && ahead_ms <= AHEAD_MS);
        if !plausible || wall_ms.saturating_add(AGREE_MS) < now_ms {
            self.pending = None;
        } else if agrees || now_ms < PLAUSIBLE_MS || self.may_step(boot_ms, ahead_ms) {
            if !agrees {
                self.record(Shift {
                    from_seq: self.unsure_seq.unwrap_or(self.first_seq),
                    to_seq: next_seq,
                    ms: ahead_ms,
                });
                (self.base_ms, self.base_boot_ms) = (wall_ms, boot_ms);
            }
            self.pending = None;
            self.unsure_seq = None;
        }
        let changed = before != (self.base_ms, self.unsure_seq, self.pending.is_some());
        let save = changed || boot_ms.saturating_sub(self.save_asked_boot_ms) >= SAVE_EVERY_MS;
        if save {
            self.save_asked_boot_ms = boot_ms;
        }
        save
    }

    /// The trusted time, in milliseconds since 1970.
    #[must_use]
    pub fn now_ms(&self, boot_ms: u64) -> u64 {
        self.base_ms
            .saturating_add(boot_ms.saturating_sub(self.base_boot_ms))
    }

    /// Whether the trusted time is more than a lower bound: the system's clock has told it in
    /// this uptime and is not more than a day ahead now.
    #[must_use]
    pub fn is_trusted(&self) -> bool {
        self.unsure_seq.is_none() && self.pending.is_none()
    }

    /// When a message stored now expires, in seconds since 1970, rounded up; never 0, which
    /// stands for never.
    #[must_use]
    pub fn expires_s(&self, boot_ms: u64, ttl_ms: u64) -> u32 {
        let at_ms = self.now_ms(boot_ms).saturating_add(ttl_ms);
        u32_at_most(at_ms.div_ceil(1000), u32::MAX - 1).max(1)
    }

    /// Whether a message has expired. `expires_s` is what its frame says, in seconds since 1970;
    /// 0 stands for never.
    #[must_use]
    pub fn is_expired(&self, boot_ms: u64, expires_s: u32, seq: u64) -> bool {
        let at_s = u64::from(expires_s) + u64::from(self.shift_s(seq));
        expires_s != 0 && self.now_ms(boot_ms) >= at_s * 1000
    }

    /// How much later than its frame says a message expires, in seconds, rounded up.
    #[must_use]
    pub fn shift_s(&self, seq: u64) -> u32 {
        let covers = |shift: &&Shift| (shift.from_seq..shift.to_seq).contains(&seq);
        let of_seq = self.shifts.iter().filter(covers);
        let ms = of_seq.fold(0_u64, |sum, shift| sum.saturating_add(shift.ms));
        u32_at_most(ms.div_ceil(1000), u32::MAX)
    }

    /// What the next process needs.
    #[must_use]
    pub fn save(&self, boot_ms: u64) -> Saved {
        let jumped = self.pending.is_some().then_some(self.first_seq);
        Saved {
            trusted_ms: self.now_ms(boot_ms),
            unsure_seq: self.unsure_seq.or(jumped),
            shifts: self.shifts.clone(),
        }
    }

    /// Forgets the shifts of messages before `oldest_seq`, none of which is stored any more.
    pub fn prune(&mut self, oldest_seq: u64) {
        self.shifts.retain(|shift| shift.to_seq > oldest_seq);
    }

    /// Whether a step is small enough or has held for long enough.
    fn may_step(&mut self, boot_ms: u64, ahead_ms: u64) -> bool {
        let same = |pending: &Pending| pending.ahead_ms.abs_diff(ahead_ms) <= AGREE_MS;
        let pending = self.pending.filter(same).unwrap_or(Pending {
            since_boot_ms: boot_ms,
            ahead_ms,
        });
        self.pending = Some(pending);
        ahead_ms <= STEP_MS_MAX || boot_ms.saturating_sub(pending.since_boot_ms) >= SETTLE_MS
    }

    fn record(&mut self, shift: Shift) {
        if shift.from_seq < shift.to_seq {
            self.shifts.push(shift);
        }
        if self.shifts.len() > SHIFTS_MAX {
            let (mut both, b) = (self.shifts.remove(0), self.shifts.remove(0));
            let overlap = both.from_seq < b.to_seq && b.from_seq < both.to_seq;
            let more_ms = if overlap { both.ms.min(b.ms) } else { 0 };
            both.ms = both.ms.max(b.ms).saturating_add(more_ms);
            both.from_seq = both.from_seq.min(b.from_seq);
            both.to_seq = both.to_seq.max(b.to_seq);
            self.shifts.insert(0, both);
        }
    }
}

fn u32_at_most(value: u64, max: u32) -> u32 {
    u32::try_from(value).map_or(max, |value| value.min(max))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const S: u64 = 1000;
    const HOUR: u64 = 3600 * S;
    const DAY: u64 = 24 * HOUR;
    const YEAR: u64 = 365 * DAY;
    const T: u64 = PLAUSIBLE_MS + 400 * DAY; // in 2027

    fn saved(trusted_ms: u64) -> Option<Saved> {
        Some(TrustedClock::new(0, trusted_ms, 1, None).save(0))
    }

    /// A trusted clock that has run from 0; the message 1 with a TTL of a minute is stored at 0.
    fn running() -> (TrustedClock, u32) {
        let clock = TrustedClock::new(0, T, 1, None);
        let expires = clock.expires_s(0, 60 * S);
        (clock, expires)
    }

    /// Asserts that the message expires at `boot_ms`, within a second.
    fn expires_at(clock: &TrustedClock, expires: u32, seq: u64, boot_ms: u64) {
        assert!(!clock.is_expired(boot_ms - 1, expires, seq), "early");
        assert!(clock.is_expired(boot_ms + 1000, expires, seq), "late");
    }

    #[test]
    fn from_1970_the_first_plausible_time_is_taken_at_once_and_shifts_what_is_stored() {
        let mut clock = TrustedClock::new(5 * S, 12 * S, 7, None);
        assert_eq!(clock.now_ms(5 * S), 12 * S);
        let early = clock.expires_s(5 * S, 60 * S);
        assert!(!clock.observe(6 * S, 13 * S, 8) && !clock.is_trusted());
        assert!(clock.observe(7 * S, T, 8) && clock.is_trusted());
        assert_eq!(clock.now_ms(7 * S), T);
        expires_at(&clock, early, 7, 65 * S);
        assert_eq!([6, 8].map(|seq| clock.shift_s(seq)), [0, 0]);
        expires_at(&clock, clock.expires_s(7 * S, 60 * S), 8, 67 * S);
    }

    #[test]
    fn what_is_stored_in_1970_keeps_its_ttl_when_the_time_comes_after_a_restart() {
        let clock = TrustedClock::new(0, 12 * S, 1, None);
        let expires = clock.expires_s(0, 60 * S);
        let last = Some(clock.save(5 * S));
        let at_start = TrustedClock::new(0, T, 2, last.clone());
        expires_at(&at_start, expires, 1, 55 * S);
        let mut later = TrustedClock::new(0, 3 * S, 2, last);
        assert_eq!(later.now_ms(0), 17 * S);
        let second = later.expires_s(0, 60 * S);
        assert!(later.observe(S, T, 3));
        expires_at(&later, expires, 1, 55 * S);
        expires_at(&later, second, 2, 60 * S);
    }

    #[test]
    fn after_a_week_off_the_time_goes_on_as_a_lower_bound_until_a_new_one_has_held() {
        let mut clock = TrustedClock::new(0, 12 * S, 2, saved(T));
        assert_eq!(clock.now_ms(S), T + S);
        let (old, new) = ((T / S) as u32 + 9999, clock.expires_s(S, HOUR));
        for at in (2..602).map(|second| second * S) {
            let save = clock.observe(at, at + T + 7 * DAY, 3);
            assert_eq!(save, at % SAVE_EVERY_MS == 2 * S);
            assert!(!clock.is_trusted() && !clock.is_expired(at, old, 1));
        }
        assert!(clock.observe(602 * S, 602 * S + T + 7 * DAY, 3) && clock.is_trusted());
        assert_eq!(clock.now_ms(602 * S), 602 * S + T + 7 * DAY);
        assert!(clock.is_expired(602 * S, old, 1));
        expires_at(&clock, new, 2, S + HOUR);
    }

    #[test]
    fn a_clock_behind_at_the_start_makes_a_lower_bound_until_it_is_right() {
        let mut clock = TrustedClock::new(0, T - HOUR, 2, saved(T));
        assert!(!clock.is_trusted());
        let expires = clock.expires_s(0, 60 * S);
        let last = clock.save(10 * S);
        assert_eq!(last.trusted_ms, T + 10 * S);
        assert!(clock.observe(10 * S, T + 9500, 3) && clock.is_trusted());
        // Had it been right only after a restart, the lower bound's message would be shifted.
        let next = TrustedClock::new(0, T + 10 * S + HOUR, 3, Some(last));
        expires_at(&next, expires, 2, 50 * S);
    }

    #[test]
    fn set_back_by_an_hour_nothing_changes() {
        let (mut clock, expires) = running();
        assert!(!clock.observe(10 * S, T - HOUR, 2) && clock.is_trusted());
        let second = clock.expires_s(10 * S, 60 * S);
        assert!(!clock.observe(20 * S, T - HOUR + 10 * S, 3));
        expires_at(&clock, expires, 1, 60 * S);
        expires_at(&clock, second, 2, 70 * S);
        assert!(!clock.observe(21 * S, T + 21 * S, 3) && clock.shifts.is_empty());
        assert_eq!(clock.now_ms(21 * S), T + 21 * S);
    }

    #[test]
    fn set_forward_by_an_hour_every_ttl_holds() {
        let (mut clock, expires) = running();
        assert!(clock.observe(10 * S, T + HOUR, 2));
        let second = clock.expires_s(10 * S, 60 * S);
        assert!(clock.observe(20 * S, T + 3 * HOUR, 3));
        expires_at(&clock, expires, 1, 60 * S);
        expires_at(&clock, second, 2, 70 * S);
        let next = TrustedClock::new(0, T + 3 * HOUR, 3, Some(clock.save(20 * S)));
        expires_at(&next, expires, 1, 40 * S);
    }

    #[test]
    fn ten_years_ahead_for_a_minute_is_no_time() {
        let (mut clock, expires) = running();
        for at in (10..70).map(|second| second * S) {
            assert_eq!(clock.observe(at, T + 10 * YEAR + at, 2), at == 10 * S);
            assert!(!clock.is_trusted() && clock.save(at).unsure_seq == Some(1));
        }
        assert!(clock.observe(70 * S, T + 70 * S, 2) && clock.is_trusted());
        assert!(clock.shifts.is_empty());
        expires_at(&clock, expires, 1, 60 * S);
    }

    #[test]
    fn ten_years_ahead_that_stay_are_taken_after_ten_minutes_without_another_jump() {
        let (mut clock, _) = running();
        let expires = clock.expires_s(0, DAY);
        clock.observe(0, T + 9 * YEAR, 2);
        for at in [300 * S, 899 * S] {
            clock.observe(at, T + 10 * YEAR + at, 2);
            assert!(!clock.is_trusted());
        }
        assert!(clock.observe(900 * S, T + 10 * YEAR + 900 * S, 2) && clock.is_trusted());
        assert_eq!(clock.now_ms(901 * S), T + 10 * YEAR + 901 * S);
        expires_at(&clock, expires, 1, DAY);
    }

    #[test]
    fn a_nights_sleep_and_a_night_off_are_time() {
        let (mut clock, expires) = running();
        assert!(clock.observe(8 * HOUR, T + 8 * HOUR, 2) && clock.is_trusted());
        assert!(clock.is_expired(8 * HOUR, expires, 1) && clock.shifts.is_empty());
        let clock = TrustedClock::new(0, T + 8 * HOUR, 2, saved(T));
        assert!(clock.is_expired(0, expires, 1) && clock.is_trusted() && clock.shifts.is_empty());
    }

    #[test]
    fn a_slow_drift_steps_by_half_seconds_and_rounding_does_not_add_up() {
        let (mut clock, _) = running();
        let expires = clock.expires_s(0, 7 * DAY);
        for second in 0..7 * 24 * 3600 {
            clock.observe(second * S, T + second * S + second / 10, 2); // 100 ppm
        }
        assert!(clock.is_trusted() && clock.shifts.len() == SHIFTS_MAX);
        expires_at(&clock, expires, 1, 7 * DAY);
    }

    #[test]
    fn an_absurd_clock_is_not_followed() {
        for wall in [0, PLAUSIBLE_MS - 1, IMPLAUSIBLE_MS, u64::MAX] {
            let (mut clock, expires) = running();
            assert!(!clock.observe(S, wall, 2));
            expires_at(&clock, expires, 1, 60 * S);
            assert_eq!(TrustedClock::new(0, wall, 1, saved(T)).now_ms(0), T);
            assert!(!TrustedClock::new(0, wall, 1, None).is_trusted());
        }
        assert_eq!(TrustedClock::new(0, u64::MAX, 1, None).now_ms(0), 0);
    }

    #[test]
    fn an_expiry_is_neither_0_nor_beyond_its_bits() {
        let clock = TrustedClock::new(0, 0, 1, None);
        let expiries = [0, 1001, u64::MAX].map(|ttl_ms| clock.expires_s(0, ttl_ms));
        assert_eq!(expiries, [1, 2, u32::MAX - 1]);
        assert!(!clock.is_expired(u64::MAX, 0, 1));
        assert!(clock.is_expired(u64::MAX, u32::MAX - 1, 1));
    }

    #[test]
    fn shifts_are_merged_later_never_earlier_cut_to_the_log_and_pruned() {
        let (mut clock, _) = running();
        assert!((1..75).all(|jump| clock.observe(0, T + jump * HOUR, 1 + jump)));
        assert_eq!(clock.shifts.len(), SHIFTS_MAX);
        assert!((1..75).all(|seq| u64::from(clock.shift_s(seq)) * S >= (75 - seq) * HOUR));
        clock.unsure_seq = Some(72);
        let mut next = TrustedClock::new(0, 0, 70, Some(clock.save(0)));
        assert_eq!([69, 70].map(|seq| next.shift_s(seq) / 3600), [6, 0]);
        assert!(next.observe(0, T + 75 * HOUR, 71));
        assert_eq!([69, 70].map(|seq| next.shift_s(seq) / 3600), [6, 1]);
        next.prune(70);
        assert_eq!([69, 70].map(|seq| next.shift_s(seq) / 3600), [0, 1]);
    }

    #[derive(Debug, Clone)]
    enum Step {
        Run(u64),
        /// The system's clock shows the true time and this; `i64::MIN` makes it 1970.
        Wall(i64),
        Store(u64),
        /// Off for some time; the newest save may be lost.
        Restart(u64, bool),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let (day, year) = (DAY as i64, YEAR as i64);
        let time = || prop_oneof![0..2 * S, 0..2 * SETTLE_MS, 0..8 * HOUR];
        let error = prop_oneof![-1500..1500_i64, -3 * day..3 * day, -10 * year..10 * year];
        let step = prop_oneof![
            4 => time().prop_map(Step::Run),
            2 => prop_oneof![Just(0), Just(i64::MIN), error].prop_map(Step::Wall),
            3 => (0..30 * DAY).prop_map(Step::Store),
            1 => (time(), any::<bool>()).prop_map(|(off, lose)| Step::Restart(off, lose)),
        ];
        proptest::collection::vec(step, 1..60)
    }

    /// True time is that of the monotonic clock and the time off. The system's clock is always
    /// right, or it is right or in 1970 and starts there, or it shows anything.
    fn check(right: bool, or_1970: bool, steps: Vec<Step>) {
        let (mut boot, mut off, mut error, mut low, mut high) = (0, T + 13 * YEAR, 0, 0, 0);
        let (mut first, mut next, mut stored, mut floor) = (1, 1, Vec::new(), 0);
        let mut clock = TrustedClock::new(boot, if right { off } else { S }, first, None);
        let (mut older, mut newest) = (clock.save(boot), clock.save(boot));
        for step in steps {
            match step {
                Step::Run(ms) => boot += ms,
                Step::Wall(_) if right => {}
                Step::Wall(ms) => error = if or_1970 && ms != i64::MIN { 0 } else { ms },
                Step::Store(ttl) => {
                    stored.push((next, clock.expires_s(boot, ttl), boot + off + ttl));
                    next += 1;
                }
                Step::Restart(ms, lose) => {
                    (boot, off, first) = (0, off + boot + ms, next);
                    let last = if lose { older } else { newest };
                    floor = last.trusted_ms;
                    clock =
                        TrustedClock::new(0, off.saturating_add_signed(error), first, Some(last));
                    (older, newest) = (clock.save(boot), clock.save(boot));
                }
            }
            let wall = (boot + off).saturating_add_signed(error);
            if wall >= PLAUSIBLE_MS {
                (low, high) = (error.min(low), error.max(high));
            }
            if clock.observe(boot, wall, next) {
                older = std::mem::replace(&mut newest, clock.save(boot));
            }
            let now = clock.now_ms(boot);
            assert!(now >= floor);
            floor = now;
            for &(seq, expires, due) in &stored {
                let at = (u64::from(expires) + u64::from(clock.shift_s(seq))) * S;
                assert_eq!(clock.is_expired(boot, expires, seq), now >= at);
                // How long after `due`, in true time, it expires if nothing more happens.
                let late = (boot + off + at) as i64 - (now + due) as i64;
                assert!(late >= if seq >= first { 0 } else { low - high }, "{late}");
                assert!(late <= 2000 || (seq < first && !right), "{late}");
            }
        }
    }

    /// In the uptime that stored it a message expires on time, whatever the system's clock shows.
    /// Later it is early by no more than plausible times were apart in their errors: never, where
    /// each time was right or implausible. It may be late if some were not right.
    #[test]
    fn no_message_is_early_and_with_a_right_clock_none_is_late() {
        proptest!(|(right: bool, or_1970: bool, steps in steps())| check(right, or_1970, steps));
    }
}
