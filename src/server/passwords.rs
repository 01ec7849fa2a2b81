//! Passwords are checked beside the tokio workers, two at a time in the process (`DESIGN` §5).
//!
//! Of those that wait the one against which least speaks goes first ([`Hub::doubt`]), so a flood of
//! wrong passwords holds itself up. Where as much speaks against several, the newest goes first:
//! whoever knows the password and shares address and name with a flood does not wait for all of it.
//! There are no more in the queue than connections before login, since a check leaves it with its
//! connection.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use tokio::sync::oneshot;

use super::clock::Clock;
use crate::hub::{Hub, PasswordCheck};

/// Checks that run at a time: what their hashes need of memory is bounded by this too.
const RUNNING_MAX: usize = 2;

/// The passwords that wait to be checked.
#[derive(Debug, Clone)]
pub struct PasswordQueue(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    hub: Arc<Hub>,
    clock: Clock,
    queue: Mutex<Queue>,
}

#[derive(Debug, Default)]
struct Queue {
    running: usize,
    next: u64,
    waiting: BTreeMap<u64, Waiting>,
}

#[derive(Debug)]
struct Waiting {
    check: Arc<PasswordCheck>,
    done: oneshot::Sender<Option<bool>>,
}

/// One connection's check; dropping it takes the check out of the queue.
#[derive(Debug)]
pub struct Ticket {
    queue: PasswordQueue,
    number: u64,
    check: Arc<PasswordCheck>,
    done: oneshot::Receiver<Option<bool>>,
}

impl PasswordQueue {
    /// An empty queue.
    #[must_use]
    pub fn new(hub: Arc<Hub>, clock: Clock) -> Self {
        Self(Arc::new(Inner {
            hub,
            clock,
            queue: Mutex::default(),
        }))
    }

    /// Has a password checked. Must be called within a runtime.
    #[must_use]
    pub fn submit(&self, check: Box<PasswordCheck>) -> Ticket {
        let check: Arc<PasswordCheck> = check.into();
        let (answer, done) = oneshot::channel();
        let mut queue = self.lock();
        let number = queue.next;
        queue.next += 1;
        let waiting = Waiting {
            check: Arc::clone(&check),
            done: answer,
        };
        queue.waiting.insert(number, waiting);
        if queue.running < RUNNING_MAX {
            queue.running += 1;
            let queue = self.clone();
            tokio::task::spawn_blocking(move || queue.work());
        }
        drop(queue);
        Ticket {
            queue: self.clone(),
            number,
            check,
            done,
        }
    }

    /// Checks until nothing waits.
    fn work(&self) {
        while let Some(Waiting { check, done }) = self.next() {
            let answer = check.carry_out();
            // Its connection may have gone.
            let _ = done.send(answer);
        }
    }

    /// The check that is due; without one, whoever asks has to end.
    fn next(&self) -> Option<Waiting> {
        let Inner { hub, clock, .. } = &*self.0;
        let now = clock.now();
        let mut queue = self.lock();
        let waiting = queue.waiting.iter();
        let due = waiting.min_by_key(|(number, one)| {
            let doubt = hub.doubt(&one.check, now);
            let turn = if doubt.is_none() {
                **number
            } else {
                u64::MAX - **number
            };
            (doubt, turn)
        });
        let due = due.map(|(number, _)| *number);
        let due = due.and_then(|number| queue.waiting.remove(&number));
        if due.is_none() {
            queue.running -= 1;
        }
        due
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.0.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Ticket {
    /// What is checked.
    #[must_use]
    pub fn check(&self) -> &PasswordCheck {
        &self.check
    }

    /// The answer, once it is there: that of [`PasswordCheck::carry_out`].
    pub fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<bool>> {
        let done = std::pin::Pin::new(&mut self.done);
        done.poll(cx).map(|answer| answer.ok().flatten())
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let left = self.queue.lock().waiting.remove(&self.number);
        drop(left);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hub::Outcome;
    use crate::hub::sample::{self, NOW};
    use crate::identity::users::Users;

    /// Of `hunter2`.
    const HASH: &str = "$2y$04$abcdefghijklmnopqrstuuV3duMsC0HpUex6N9qapiuOHHWkwRXVm";

    fn hub() -> Arc<Hub> {
        let hub = sample::hub();
        hub.set_password_key(&[7; 32]);
        let users = format!("ann:{HASH}\nbob:{HASH}");
        hub.set_users(Some(Users::parse(&users).unwrap()));
        Arc::new(hub)
    }

    fn check(hub: &Hub, from: u8, name: &str, password: &str) -> Box<PasswordCheck> {
        match sample::login(hub, [127, 0, 0, from], (name, password)) {
            Ok(Outcome::Check(check)) => check,
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test]
    async fn every_check_is_answered_and_two_run_at_a_time() {
        let hub = hub();
        let queue = PasswordQueue::new(Arc::clone(&hub), Clock::start());
        let submitted = (0..20).map(|number| {
            let password = if number % 3 == 0 {
                "hunter2"
            } else {
                "hunter3"
            };
            queue.submit(check(&hub, 1, "ann", password))
        });
        let tickets: Vec<_> = submitted.collect();
        assert!(queue.lock().running <= RUNNING_MAX);
        for (number, mut ticket) in tickets.into_iter().enumerate() {
            let answer = std::future::poll_fn(|cx| ticket.poll(cx)).await;
            assert_eq!(answer, Some(number % 3 == 0));
        }
        assert!(queue.lock().waiting.is_empty());
    }

    #[test]
    fn the_least_doubtful_goes_first_and_who_left_not_at_all() {
        let hub = hub();
        let queue = PasswordQueue::new(Arc::clone(&hub), Clock::start());
        // Nobody works: it looks as if two were at it already.
        queue.lock().running = RUNNING_MAX;
        let submit = |from, name| queue.submit(check(&hub, from, name, "hunter3"));
        let guess = check(&hub, 1, "ann", "hunter3");
        let _ = hub.checked(&guess, Some(false), NOW);
        let mut tickets = vec![
            submit(1, "ann"),
            submit(1, "bob"),
            submit(2, "ann"),
            submit(2, "bob"),
            submit(3, "ann"),
            submit(1, "ann"),
            submit(1, "bob"),
        ];
        let numbers: Vec<_> = tickets.iter().map(|ticket| ticket.number).collect();
        let mut order = Vec::new();
        drop(tickets.remove(2));
        while let Some(next) = queue.next() {
            let same = |ticket: &&Ticket| Arc::ptr_eq(&ticket.check, &next.check);
            order.push(tickets.iter().find(same).unwrap().number);
        }
        assert_eq!(order, [3, 4, 6, 1, 5, 0].map(|at| numbers[at]));
        assert_eq!(queue.lock().running, RUNNING_MAX - 1);
    }
}
