//! What the parser reports.

use super::message::Header;

/// A step in the reading of a token stream.
///
/// Events come as `MessageStart`, any number of `ContentDelta`, `MessageEnd`, again and again, with `Stray` only between
/// messages. No text is lost: the [`text`](Event::text) of all events, joined, is the text of all tokens that are not
/// control tokens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A message begins.
    MessageStart {
        /// What the header says.
        header: Header,
        /// The header's text as it was written, without control tokens.
        raw: String,
    },
    /// More of the message's content, whole characters, never empty.
    ContentDelta(String),
    /// The message is complete.
    MessageEnd(EndReason),
    /// White space that belongs to no message.
    Stray(String),
}

/// Why a message ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum EndReason {
    /// `<|end|>`: another message follows.
    End,
    /// `<|return|>`: the answer is complete.
    Return,
    /// `<|call|>`: a tool is called.
    Call,
    /// `<|endoftext|>`.
    EndOfText,
    /// The next message began without an end token.
    NextMessage,
    /// The stream ended without an end token: the token limit or the user stopped it.
    Unfinished,
}

impl Event {
    /// The text this event carries: header text, content or white space; empty for an end.
    pub fn text(&self) -> &str {
        match self {
            Event::MessageStart { raw, .. } => raw,
            Event::ContentDelta(text) | Event::Stray(text) => text,
            Event::MessageEnd(_) => "",
        }
    }
}

/// Checks the order of a finished stream's events; the error names the first event out of place.
pub(in crate::text) fn check_order(events: &[Event]) -> Result<(), String> {
    let mut inside = false;
    for (i, event) in events.iter().enumerate() {
        let in_place = match event {
            Event::MessageStart { .. } => !inside,
            Event::Stray(text) => !inside && !text.is_empty(),
            Event::ContentDelta(text) => inside && !text.is_empty(),
            Event::MessageEnd(_) => inside,
        };
        if !in_place {
            return Err(format!("event {i} out of place: {event:?}"));
        }
        match event {
            Event::MessageStart { .. } => inside = true,
            Event::MessageEnd(_) => inside = false,
            Event::ContentDelta(_) | Event::Stray(_) => {}
        }
    }
    if inside { Err("a message without an end".to_owned()) } else { Ok(()) }
}
