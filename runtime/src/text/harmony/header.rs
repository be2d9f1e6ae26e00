//! Reading message headers, as leniently as models write them.
//!
//! A header is collected as text plus the places where control tokens stood. It is read in one of two ways: complete, when
//! `<|message|>` closed it, everything is header; otherwise the longest beginning that looks like a header is one, and the
//! rest is content.

use super::message::{Header, Role};
use crate::text::control::Control;

/// A header that may grow no further than this without `<|message|>` before it counts as content.
const MAX_BYTES: usize = 256;

/// More words than this that are not header words mean the model is writing prose.
const MAX_PLAIN_WORDS: usize = 3;

const CHANNELS: [&str; 3] = ["analysis", "commentary", "final"];

/// Where a header began, which decides what its first word may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Origin {
    /// The role is already known: the prompt ended with it, or a message went on without `<|start|>`.
    Role(Role),
    /// After `<|start|>`: the first word is the author.
    Start,
    /// Text between messages: perhaps an author, perhaps content.
    Nothing,
}

/// A control token inside a header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mark {
    Channel,
    Constrain,
}

/// A header while it is being collected.
#[derive(Clone, Debug)]
pub(super) struct HeaderText {
    origin: Origin,
    raw: String,
    /// Control tokens by the offset in `raw` before which they stood.
    marks: Vec<(usize, Mark)>,
}

/// The beginning of a collected text that is a header, and where it ends.
pub(super) struct Prefix {
    pub(super) header: Header,
    pub(super) len: usize,
}

impl HeaderText {
    pub(super) fn new(origin: Origin) -> Self {
        Self { origin, raw: String::new(), marks: Vec::new() }
    }

    pub(super) fn push_text(&mut self, text: &str) {
        self.raw.push_str(text);
    }

    pub(super) fn push_mark(&mut self, mark: Mark) {
        self.marks.push((self.raw.len(), mark));
    }

    pub(super) fn into_raw(self) -> String {
        self.raw
    }

    /// Whether there is nothing here but white space, so that it is no message.
    pub(super) fn is_blank(&self) -> bool {
        self.raw.trim().is_empty()
    }

    /// Whether this can no longer be a header: too long, or too many words that are none of a header's.
    pub(super) fn is_content(&self) -> bool {
        if self.raw.len() > MAX_BYTES {
            return true;
        }
        let rest = self.raw[self.prefix().len..].trim_start();
        !rest.is_ascii() || rest.split_whitespace().nth(MAX_PLAIN_WORDS).is_some() || rest.trim_end().contains('\n')
    }

    /// Whether a message without `<|message|>` seems to stand before this point, when `<|channel|>` comes up.
    pub(super) fn holds_prose(&self) -> bool {
        let rest = &self.raw[self.prefix().len..];
        let allowed = if self.origin == Origin::Nothing { 0 } else { 1 };
        !rest.is_ascii() || rest.split_whitespace().nth(allowed).is_some()
    }

    /// Reads a header that `<|message|>` closed. Every word counts; the first of each kind wins, but the last channel does.
    pub(super) fn complete(&self) -> Header {
        let items = self.items();
        let (mut header, used) = self.author(&items, Reading::Complete);
        let mut plain = Vec::new();
        let mut expected = None;
        for item in &items[used..] {
            let word = match *item {
                Item::Mark(mark) => {
                    expected = Some(Expected::After(mark));
                    continue;
                }
                Item::Word { text, .. } => text,
            };
            if let Some(recipient) = word.strip_prefix("to=") {
                match recipient.is_empty() {
                    true => expected = Some(Expected::Recipient),
                    false => set(&mut header.recipient, recipient),
                }
                continue;
            }
            match expected.take() {
                Some(Expected::After(Mark::Channel)) => header.channel = Some(word.to_owned()),
                Some(Expected::After(Mark::Constrain)) => set(&mut header.content_type, &constrained(word)),
                Some(Expected::Recipient) => set(&mut header.recipient, word),
                None => plain.push(word),
            }
        }
        place_plain_words(&mut header, &plain);
        header
    }

    /// Reads the beginning that looks like a header, for text that nothing closed. White space after it belongs to it.
    pub(super) fn prefix(&self) -> Prefix {
        let items = self.items();
        let (mut header, mut used) = self.author(&items, Reading::Prefix);
        let mut len = end_of(&items[..used]);
        while let Some(item) = items.get(used) {
            let next = items.get(used + 1).and_then(Item::word);
            // A word of the header, how much of it is header, and how many items that takes.
            let (word, end, taken, count) = match (*item, next) {
                (Item::Word { text, end }, _) if text.starts_with("to=") => {
                    let name = leading_name(&text[3..]);
                    if name.is_empty() {
                        break;
                    }
                    set(&mut header.recipient, name);
                    (text, end, 3 + name.len(), 1)
                }
                (Item::Mark(mark), Some((text, end))) if !text.starts_with("to=") => match mark {
                    Mark::Channel => {
                        let after = items.get(used + 2).and_then(Item::word);
                        let prose = after.is_some_and(|(word, _)| !is_header_word(word));
                        let Some(channel) = channel_in(text, prose) else {
                            break;
                        };
                        header.channel = Some(channel.to_owned());
                        (text, end, channel.len(), 2)
                    }
                    Mark::Constrain => {
                        let name = leading_name(text);
                        if name.is_empty() {
                            break;
                        }
                        set(&mut header.content_type, &constrained(name));
                        (text, end, name.len(), 2)
                    }
                },
                (Item::Mark(_), _) => {
                    used += 1;
                    continue;
                }
                (Item::Word { .. }, _) => break,
            };
            len = end - (word.len() - taken);
            used += count;
            if taken < word.len() {
                break;
            }
        }
        if len > 0 {
            let rest = &self.raw[len..];
            len += rest.len() - rest.trim_start().len();
        }
        Prefix { header, len }
    }

    /// The author, and how many items name it.
    fn author(&self, items: &[Item<'_>], reading: Reading) -> (Header, usize) {
        let first = items.first().and_then(Item::word).map(|(text, _)| text);
        let next_is_plain = items.get(1).and_then(Item::word).is_some_and(|(word, _)| !word.starts_with("to="));
        match (self.origin, first) {
            (Origin::Role(role), Some(word)) => {
                // The model repeated the role that the prompt had already given.
                let repeated = word == role.name() && !(reading == Reading::Prefix && next_is_plain);
                (Header::new(role), usize::from(repeated))
            }
            (Origin::Role(role), None) => (Header::new(role), 0),
            (Origin::Start | Origin::Nothing, None) => (Header::new(Role::Assistant), 0),
            (origin, Some(word)) => {
                let sure = origin == Origin::Start || !next_is_plain;
                match known_author(word) {
                    Some(header) if sure || reading == Reading::Complete => (header, 1),
                    None if self.names_tool(origin, word, items, reading) => {
                        let mut header = Header::new(Role::Tool);
                        header.name = Some(word.to_owned());
                        (header, 1)
                    }
                    _ => (Header::new(Role::Assistant), 0),
                }
            }
        }
    }

    /// Whether an unknown first word is a tool's name rather than the first word of the content.
    fn names_tool(&self, origin: Origin, word: &str, items: &[Item<'_>], reading: Reading) -> bool {
        let addressed = match items.get(1) {
            Some(Item::Mark(_)) => word.contains('.'),
            Some(Item::Word { text, .. }) => text.starts_with("to="),
            None => false,
        };
        match (origin, reading) {
            (Origin::Role(_), _) => false,
            _ if word.starts_with("to=") => false,
            (Origin::Start, Reading::Complete) => true,
            _ => addressed && is_identifier(word),
        }
    }

    /// Words and marks in order. Marks split words.
    fn items(&self) -> Vec<Item<'_>> {
        let mut items = Vec::new();
        let mut start = 0;
        for &(at, mark) in &self.marks {
            push_words(&mut items, &self.raw, start, at);
            items.push(Item::Mark(mark));
            start = at;
        }
        push_words(&mut items, &self.raw, start, self.raw.len());
        items
    }
}

/// How far a header is believed.
#[derive(Clone, Copy, PartialEq)]
enum Reading {
    Complete,
    Prefix,
}

/// What the next word of a header is.
enum Expected {
    After(Mark),
    Recipient,
}

/// A word, with the offset of its end, or a control token.
#[derive(Clone, Copy)]
enum Item<'a> {
    Word { text: &'a str, end: usize },
    Mark(Mark),
}

impl<'a> Item<'a> {
    fn word(&self) -> Option<(&'a str, usize)> {
        match *self {
            Item::Word { text, end } => Some((text, end)),
            Item::Mark(_) => None,
        }
    }
}

fn push_words<'a>(items: &mut Vec<Item<'a>>, raw: &'a str, start: usize, end: usize) {
    let part = &raw[start..end];
    let mut offset = start;
    for piece in part.split_inclusive(char::is_whitespace) {
        let text = piece.trim_end();
        if !text.is_empty() {
            items.push(Item::Word { text, end: offset + text.len() });
        }
        offset += piece.len();
    }
}

/// Where the last word of `items` ends.
fn end_of(items: &[Item<'_>]) -> usize {
    items.iter().rev().find_map(Item::word).map_or(0, |(_, end)| end)
}

/// The author that a header's first word names, if it is a role: `user`, `user:name`, or a role run into a channel.
fn known_author(word: &str) -> Option<Header> {
    let (role, rest) = match word.split_once(':') {
        Some((role, name)) => (role, Some(name)),
        None => (word, None),
    };
    if let Some(role) = Role::from_name(role) {
        let mut header = Header::new(role);
        header.name = rest.filter(|name| !name.is_empty()).map(str::to_owned);
        return Some(header);
    }
    let channel = word.strip_prefix(Role::Assistant.name()).filter(|channel| CHANNELS.contains(channel))?;
    let mut header = Header::new(Role::Assistant);
    header.channel = Some(channel.to_owned());
    Some(header)
}

/// The channel at the beginning of the word after `<|channel|>` when no `<|message|>` follows: a known channel even where
/// text runs into it, or a lone identifier.
fn channel_in(word: &str, followed_by_plain_word: bool) -> Option<&str> {
    let known = CHANNELS.into_iter().find(|channel| word.starts_with(channel));
    if let Some(channel) = known {
        let runs_on = word[channel.len()..].chars().next();
        if runs_on.is_none_or(|c| !c.is_lowercase()) {
            return Some(&word[..channel.len()]);
        }
    }
    (is_identifier(word) && !followed_by_plain_word).then_some(word)
}

/// Finds a place for words that nothing introduces: `get_weather json`, `functions.x`, `json`.
fn place_plain_words(header: &mut Header, words: &[&str]) {
    let mut words = words.iter().copied();
    while let Some(word) = words.next() {
        let last = words.len() == 0;
        let names_type = is_content_type(word) || header.recipient.is_some() || (last && !may_call(header));
        if header.content_type.is_none() && names_type && !word.contains('.') {
            header.content_type = Some(word.to_owned());
        } else if header.recipient.is_none() && header.role == Role::Assistant && is_identifier(word) {
            header.recipient = Some(word.to_owned());
        }
    }
}

/// Whether a bare word in this header is more likely a tool's name than a content type.
fn may_call(header: &Header) -> bool {
    header.role == Role::Assistant && !matches!(header.channel.as_deref(), Some("analysis" | "final"))
}

fn is_content_type(word: &str) -> bool {
    ["json", "code", "text", "markdown", "xml", "yaml", "html"].contains(&word) || word.contains('/')
}

/// A word that continues a header after the channel.
fn is_header_word(word: &str) -> bool {
    word.starts_with("to=") || is_content_type(word)
}

/// A name such as tools, channels and content types have.
fn is_identifier(word: &str) -> bool {
    leading_name(word).len() == word.len()
}

/// The name that `word` begins with, perhaps empty.
fn leading_name(word: &str) -> &str {
    let end = word.find(|c: char| !(c.is_ascii_alphanumeric() || "_-.:/?".contains(c)));
    &word[..end.unwrap_or(word.len())]
}

fn constrained(word: &str) -> String {
    format!("{}{word}", Control::Constrain.name())
}

fn set(slot: &mut Option<String>, value: &str) {
    if slot.is_none() {
        *slot = Some(value.to_owned());
    }
}
