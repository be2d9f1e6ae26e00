//! What `run` and `chat` share: prompts in harmony format, and answers shown as they come.

use std::io::{IsTerminal, Write};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use super::args::{EffortArg, PromptArgs};
use super::output::{self, Failure};
use crate::session::Session;
use crate::text::harmony::{DeveloperContent, Event, Message, MessageKind, Parser, ReasoningEffort, SystemContent};
use crate::text::{StopSet, Tokenizer, Utf8Stream};

/// The messages before the first user message.
pub fn preamble(args: &PromptArgs) -> Result<Vec<Message>, Failure> {
    let mut messages = Vec::new();
    if !args.no_system {
        let effort = match args.reasoning {
            EffortArg::Low => ReasoningEffort::Low,
            EffortArg::Medium => ReasoningEffort::Medium,
            EffortArg::High => ReasoningEffort::High,
        };
        let mut system = SystemContent::default().with_reasoning_effort(effort);
        match args.date.as_deref() {
            Some("none") => {}
            Some(date) => {
                check_date(date)?;
                system = system.with_current_date(date);
            }
            None => system = system.with_current_date(today()),
        }
        messages.push(Message::system(system));
    }
    if let Some(text) = &args.instructions {
        messages.push(Message::developer(DeveloperContent::new(text.clone())));
    }
    Ok(messages)
}

fn check_date(date: &str) -> Result<(), Failure> {
    let parts: Vec<Option<u32>> = date.split('-').map(|p| p.parse().ok()).collect();
    match (date.len(), parts.as_slice()) {
        (10, [Some(_), Some(1..=12), Some(1..=31)]) => Ok(()),
        _ => Err(Failure::Usage(format!("--date is `{date}`, expected YYYY-MM-DD or none"))),
    }
}

/// Today in UTC as YYYY-MM-DD (days to civil date after Howard Hinnant, "chrono-compatible low-level date algorithms").
fn today() -> String {
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
    civil(seconds as i64 / 86_400)
}

fn civil(days: i64) -> String {
    let z = days + 719_468;
    let era = z.div_euclid(146_097);
    let doe = z.rem_euclid(146_097);
    let yoe = (doe - doe / 1460 + doe / 36_524 - doe / 146_096) / 365;
    let doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
    let mp = (5 * doy + 2) / 153;
    let day = doy - (153 * mp + 2) / 5 + 1;
    let month = if mp < 10 { mp + 3 } else { mp - 9 };
    let year = yoe + era * 400 + i64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02}")
}

/// The stop tokens of a session.
pub fn stop_set(session: &Session) -> StopSet {
    match &session.tokenizer {
        Some(t) => {
            let own = StopSet::for_tokenizer(t);
            let end = t.control().end.filter(|_| t.control().has_harmony());
            let more = session.generation.eos.iter().copied().filter(|id| Some(*id) != end);
            StopSet::from_ids(own.ids().iter().copied().chain(more))
        }
        None => StopSet::from_ids(session.generation.eos.iter().copied()),
    }
}

/// Shows an answer while it is drawn.
pub enum Display {
    /// Harmony: the answer on stdout, reasoning and everything else dimmed on stderr.
    Harmony {
        /// Reads the tokens.
        parser: Box<Parser>,
        /// Style of the message under way.
        dim: bool,
        /// Whether stderr is a terminal.
        colour: bool,
        /// Whether anything was written on stderr since the last newline.
        open_dim: bool,
    },
    /// Plain text of every token.
    Text {
        /// Decodes.
        tokenizer: Arc<Tokenizer>,
        /// Holds back incomplete characters.
        stream: Utf8Stream,
    },
    /// Token ids, for models without a tokenizer.
    Ids,
}

impl Display {
    /// A display for the answer of `session`: harmony unless `raw`.
    pub fn new(session: &Session, raw: bool) -> Result<Display, Failure> {
        let Some(tokenizer) = session.tokenizer.clone() else { return Ok(Display::Ids) };
        if raw {
            return Ok(Display::Text { tokenizer, stream: Utf8Stream::new() });
        }
        let parser = Box::new(Parser::for_completion(tokenizer)?);
        let colour = std::io::stderr().is_terminal();
        Ok(Display::Harmony { parser, dim: false, colour, open_dim: false })
    }

    /// Shows one token.
    pub fn token(&mut self, id: u32) -> Result<(), Failure> {
        match self {
            Display::Ids => output::text(&format!("{id} ")),
            Display::Text { tokenizer, stream } => {
                if tokenizer.is_control(id) {
                    return Ok(());
                }
                output::text(&stream.push(tokenizer.token_bytes(id)))
            }
            Display::Harmony { parser, .. } => {
                let events = parser.push(id);
                self.events(events)
            }
        }
    }

    /// Shows what was held back and ends the line; the messages of the answer.
    pub fn finish(mut self) -> Result<Vec<Message>, Failure> {
        match &mut self {
            Display::Ids => output::text("\n")?,
            Display::Text { stream, .. } => output::text(&format!("{}\n", stream.finish()))?,
            Display::Harmony { parser, .. } => {
                let events = parser.finish();
                self.events(events)?;
                output::text("\n")?;
            }
        }
        match self {
            Display::Harmony { parser, .. } => Ok(parser.into_messages()),
            _ => Ok(vec![]),
        }
    }

    fn events(&mut self, events: Vec<Event>) -> Result<(), Failure> {
        let Display::Harmony { dim, colour, open_dim, .. } = self else { return Ok(()) };
        for event in events {
            match event {
                Event::MessageStart { header, .. } => {
                    *dim = !matches!(header.kind(), MessageKind::Answer | MessageKind::Preamble);
                }
                Event::ContentDelta(text) if *dim => {
                    aside(&text, *colour);
                    *open_dim = true;
                }
                Event::ContentDelta(text) => {
                    if std::mem::take(open_dim) {
                        note!("");
                    }
                    output::text(&text)?;
                }
                Event::MessageEnd(_) if std::mem::take(open_dim) => note!(""),
                Event::MessageEnd(_) | Event::Stray(_) => {}
            }
        }
        Ok(())
    }
}

/// Text that is not the answer, dimmed on a terminal. A closed stderr is not worth failing for.
fn aside(text: &str, colour: bool) {
    let mut err = std::io::stderr().lock();
    let _ = match colour {
        true => write!(err, "\x1b[2m{text}\x1b[0m"),
        false => write!(err, "{text}"),
    };
    let _ = err.flush();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates() {
        assert_eq!(civil(0), "1970-01-01");
        assert_eq!(civil(20_779), "2026-11-22");
        assert_eq!(civil(11_016), "2000-02-29");
        assert!(check_date("2026-11-22").is_ok());
        assert!(check_date("2026-13-22").is_err() && check_date("today").is_err());
    }
}
