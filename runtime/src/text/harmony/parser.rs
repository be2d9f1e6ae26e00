//! The incremental parser: token ids in, events and messages out.
//!
//! Models do not always write the format they were taught, and tokens arrive one at a time, so the parser has an answer to
//! every token in every state and never looks ahead. Control tokens mean what they say where they can; where they cannot
//! (a second `<|return|>`, a `<|message|>` inside content) they are passed over. Text always goes somewhere.

use std::sync::Arc;

use super::event::{EndReason, Event};
use super::header::{HeaderText, Mark, Origin};
use super::message::{Content, Header, Message, Role};
use crate::text::control::{Control, HarmonyTokens};
use crate::text::{Tokenizer, TokenizerError, Utf8Stream};

/// Reads a token stream as harmony messages, one token at a time.
///
/// Parsing cannot fail; building a parser can, when the tokenizer lacks a harmony token.
///
/// ```
/// use gossamer_runtime::text::harmony::{Event, Parser};
/// use gossamer_runtime::text::fuzz;
///
/// let tokenizer = fuzz::byte_tokenizer();
/// let mut parser = Parser::for_completion(tokenizer.clone()).unwrap();
/// // A model that forgot the format altogether is still heard.
/// let mut events = Vec::new();
/// for id in tokenizer.encode("I am sorry, I cannot do that.") {
///     events.extend(parser.push(id));
/// }
/// events.extend(parser.finish());
/// let text: String = events.iter().map(Event::text).collect();
/// assert_eq!(text, "I am sorry, I cannot do that.");
/// assert_eq!(parser.messages()[0].text(), Some("I am sorry, I cannot do that."));
/// ```
#[derive(Debug)]
pub struct Parser {
    tokenizer: Arc<Tokenizer>,
    tokens: HarmonyTokens,
    state: State,
    utf8: Utf8Stream,
    /// The message being read, then kept in `messages` when it ends.
    current: Option<Current>,
    messages: Vec<Message>,
    events: Vec<Event>,
}

#[derive(Debug)]
enum State {
    /// Nothing is open.
    Between,
    /// Header text is collected.
    Header(HeaderText),
    /// Text is content of the current message.
    Content,
}

#[derive(Debug)]
struct Current {
    header: Header,
    text: String,
    /// Whether `<|message|>` began the content; an empty message without it is not worth keeping.
    proper: bool,
}

impl Parser {
    /// A parser for what a model writes after a prompt that ends with `<|start|>assistant`.
    pub fn for_completion(tokenizer: Arc<Tokenizer>) -> Result<Self, TokenizerError> {
        Self::new(tokenizer, State::Header(HeaderText::new(Origin::Role(Role::Assistant))))
    }

    /// A parser for a whole conversation, which begins with `<|start|>`.
    pub fn for_conversation(tokenizer: Arc<Tokenizer>) -> Result<Self, TokenizerError> {
        Self::new(tokenizer, State::Between)
    }

    fn new(tokenizer: Arc<Tokenizer>, state: State) -> Result<Self, TokenizerError> {
        let tokens = tokenizer.control().harmony(&tokenizer)?;
        let utf8 = Utf8Stream::new();
        Ok(Self { tokenizer, tokens, state, utf8, current: None, messages: Vec::new(), events: Vec::new() })
    }

    /// Reads one token and returns what it brought about. Most tokens give one event or none.
    pub fn push(&mut self, id: u32) -> Vec<Event> {
        if self.tokenizer.is_control(id) {
            // A character does not continue across a control token.
            self.flush_text();
            if let Some(control) = self.tokens.classify(id) {
                self.on_control(control);
            }
        } else {
            let text = self.utf8.push(self.tokenizer.token_bytes(id));
            self.on_text(text);
        }
        std::mem::take(&mut self.events)
    }

    /// Ends the stream: a truncated character becomes U+FFFD, an open message ends as [`EndReason::Unfinished`]. The parser
    /// then stands between messages and may be used again.
    pub fn finish(&mut self) -> Vec<Event> {
        self.flush_text();
        self.close(EndReason::Unfinished);
        std::mem::take(&mut self.events)
    }

    /// The messages completed so far, fit for the history of the next prompt.
    pub fn messages(&self) -> &[Message] {
        &self.messages
    }

    /// The messages completed, without the parser.
    pub fn into_messages(self) -> Vec<Message> {
        self.messages
    }

    /// The header of the message whose content is being read.
    pub fn current(&self) -> Option<&Header> {
        self.current.as_ref().map(|current| &current.header)
    }

    fn flush_text(&mut self) {
        let tail = self.utf8.finish();
        self.on_text(tail);
    }

    fn on_text(&mut self, text: String) {
        if text.is_empty() {
            return;
        }
        match &mut self.state {
            State::Content => self.add_content(text),
            State::Header(header) => {
                header.push_text(&text);
                if header.is_content() {
                    self.open_without_message();
                }
            }
            State::Between => {
                self.state = State::Header(HeaderText::new(Origin::Nothing));
                self.on_text(text);
            }
        }
    }

    fn on_control(&mut self, control: Control) {
        match control {
            Control::Start => self.begin_header(Origin::Start),
            Control::Channel => self.on_channel(),
            Control::Constrain => {
                if let State::Header(header) = &mut self.state {
                    header.push_mark(Mark::Constrain);
                }
            }
            Control::Message => self.on_message(),
            Control::End => self.close(EndReason::End),
            Control::Return => self.close(EndReason::Return),
            Control::Call => self.close(EndReason::Call),
            Control::EndOfText => self.close(EndReason::EndOfText),
            Control::StartOfText => {}
        }
    }

    fn on_channel(&mut self) {
        let role = match &self.state {
            State::Header(header) if !header.holds_prose() => None,
            State::Header(header) => Some(header.prefix().header.role),
            State::Content => self.current.as_ref().map(|current| current.header.role),
            State::Between => Some(Role::Assistant),
        };
        // A channel where no header is open, or after text: the model left out the end and start tokens.
        if let Some(role) = role {
            self.begin_header(Origin::Role(role));
        }
        if let State::Header(header) = &mut self.state {
            header.push_mark(Mark::Channel);
        }
    }

    fn on_message(&mut self) {
        let header = match std::mem::replace(&mut self.state, State::Content) {
            State::Content => return,
            State::Header(header) => header,
            State::Between => HeaderText::new(Origin::Role(Role::Assistant)),
        };
        self.open(header.complete(), header.into_raw(), true);
    }

    fn begin_header(&mut self, origin: Origin) {
        self.close(EndReason::NextMessage);
        self.state = State::Header(HeaderText::new(origin));
    }

    /// Ends whatever is open.
    fn close(&mut self, reason: EndReason) {
        if let State::Header(header) = &self.state {
            if header.is_blank() {
                if let State::Header(header) = std::mem::replace(&mut self.state, State::Between) {
                    let raw = header.into_raw();
                    self.events.extend((!raw.is_empty()).then_some(Event::Stray(raw)));
                }
                return;
            }
            self.open_without_message();
        }
        self.state = State::Between;
        if let Some(Current { header, text, proper }) = self.current.take() {
            self.events.push(Event::MessageEnd(reason));
            if proper || !text.is_empty() {
                self.messages.push(Message { header, content: Content::Text(text) });
            }
        }
    }

    /// Takes collected text that no `<|message|>` closed: its beginning is the header, the rest is content.
    fn open_without_message(&mut self) {
        if let State::Header(header) = std::mem::replace(&mut self.state, State::Content) {
            let prefix = header.prefix();
            let mut raw = header.into_raw();
            let content = raw.split_off(prefix.len);
            self.open(prefix.header, raw, false);
            self.add_content(content);
        }
    }

    fn open(&mut self, header: Header, raw: String, proper: bool) {
        self.events.push(Event::MessageStart { header: header.clone(), raw });
        self.current = Some(Current { header, text: String::new(), proper });
    }

    fn add_content(&mut self, text: String) {
        if text.is_empty() {
            return;
        }
        if let Some(current) = &mut self.current {
            current.text.push_str(&text);
        }
        self.events.push(Event::ContentDelta(text));
    }
}

#[cfg(test)]
mod tests;
