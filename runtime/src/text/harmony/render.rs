//! Conversations to tokens.
//!
//! A conversation is first a list of segments, control tokens and separate pieces of text. Tokens and debugging text are two
//! readings of that list, so they cannot disagree. Each piece is tokenised by itself, as in training: BPE never merges across
//! the boundary between, say, a role and a recipient.

use std::borrow::Cow;

use super::content::FunctionTools;
use super::message::{Content, Header, Message, Role};
use crate::text::control::{Control, HarmonyTokens};
use crate::text::{Tokenizer, TokenizerError};

/// What to do with past reasoning.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum History {
    /// Drops the analysis of every turn that has its final answer; keeps the analysis after the last final answer, which a
    /// turn in the middle of tool calls needs. What the model expects.
    #[default]
    DropFinishedAnalysis,
    /// Drops the analysis before the first final answer, and only when the assistant's last message is final. What the
    /// reference renderer does.
    DropBeforeFirstFinal,
    /// Keeps everything. For training data and for continuing a recorded stream.
    KeepAll,
}

/// A piece of a rendered conversation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Segment<'a> {
    /// A control token.
    Control(Control),
    /// Text to be tokenised by itself as ordinary text.
    Text(Cow<'a, str>),
}

/// The prompt for the assistant's next message: the conversation, then `<|start|>assistant`.
///
/// Fails only when the tokenizer lacks a harmony token.
pub fn render_prompt(
    tokenizer: &Tokenizer,
    messages: &[Message],
    history: History,
) -> Result<Vec<u32>, TokenizerError> {
    let tokens = tokenizer.control().harmony(tokenizer)?;
    let mut segments = segments(messages, history);
    segments.extend(generation_prompt());
    Ok(encode(tokenizer, &tokens, &segments))
}

/// The conversation alone, every message closed. Fails as [`render_prompt`].
pub fn render_conversation(
    tokenizer: &Tokenizer,
    messages: &[Message],
    history: History,
) -> Result<Vec<u32>, TokenizerError> {
    let tokens = tokenizer.control().harmony(tokenizer)?;
    Ok(encode(tokenizer, &tokens, &segments(messages, history)))
}

/// The prompt of [`render_prompt`] as text, control tokens by name. For reading: text that happens to spell a control token
/// looks the same as the token.
pub fn prompt_text(messages: &[Message], history: History) -> String {
    let mut segments = segments(messages, history);
    segments.extend(generation_prompt());
    text(&segments)
}

/// The conversation of [`render_conversation`] as text, control tokens by name.
pub fn conversation_text(messages: &[Message], history: History) -> String {
    text(&segments(messages, history))
}

/// The pieces of a conversation, in order.
pub fn segments(messages: &[Message], history: History) -> Vec<Segment<'_>> {
    let mut out = Vec::new();
    let functions = function_tools(messages);
    for message in kept(messages, history) {
        push_message(&mut out, message, functions);
    }
    out
}

fn generation_prompt() -> [Segment<'static>; 2] {
    [Segment::Control(Control::Start), Segment::Text(Cow::Borrowed(Role::Assistant.name()))]
}

fn push_message<'a>(out: &mut Vec<Segment<'a>>, message: &'a Message, functions: FunctionTools) {
    push_header(out, &message.header);
    out.push(Segment::Text(match &message.content {
        Content::Text(text) => Cow::Borrowed(text.as_str()),
        Content::System(system) => Cow::Owned(system.text(functions)),
        Content::Developer(developer) => Cow::Owned(developer.text()),
    }));
    let calls = message.header.role == Role::Assistant && message.header.recipient.is_some();
    out.push(Segment::Control(if calls { Control::Call } else { Control::End }));
}

fn push_header<'a>(out: &mut Vec<Segment<'a>>, header: &'a Header) {
    out.push(Segment::Control(Control::Start));
    match (header.role, &header.name) {
        (Role::Tool, Some(name)) => out.push(Segment::Text(Cow::Borrowed(name))),
        (role, name) => {
            out.push(Segment::Text(Cow::Borrowed(role.name())));
            out.extend(name.as_ref().map(|name| Segment::Text(Cow::Owned(format!(":{name}")))));
        }
    }
    if let Some(recipient) = header.recipient.as_ref().filter(|&recipient| recipient != "all") {
        out.push(Segment::Text(Cow::Owned(format!(" to={recipient}"))));
    }
    if let Some(channel) = &header.channel {
        out.push(Segment::Control(Control::Channel));
        out.push(Segment::Text(Cow::Borrowed(channel)));
    }
    if let Some(content_type) = &header.content_type {
        match content_type.strip_prefix(Control::Constrain.name()) {
            Some(name) => {
                out.push(Segment::Text(Cow::Borrowed(" ")));
                out.push(Segment::Control(Control::Constrain));
                out.push(Segment::Text(Cow::Borrowed(name)));
            }
            None => out.push(Segment::Text(Cow::Owned(format!(" {content_type}")))),
        }
    }
    out.push(Segment::Control(Control::Message));
}

/// The messages that the history policy keeps.
fn kept(messages: &[Message], history: History) -> impl Iterator<Item = &Message> {
    let is_final = |message: &Message| message.header.channel.as_deref() == Some("final");
    let drop_before = match history {
        History::KeepAll => 0,
        History::DropFinishedAnalysis => messages.iter().rposition(is_final).unwrap_or(0),
        History::DropBeforeFirstFinal => {
            let last = messages.iter().rfind(|message| message.header.role == Role::Assistant);
            match last.is_some_and(is_final) {
                true => messages.iter().position(is_final).unwrap_or(0),
                false => 0,
            }
        }
    };
    messages.iter().enumerate().filter(move |&(i, message)| i >= drop_before || !is_analysis(message)).map(|(_, m)| m)
}

/// Whether a message is reasoning that may be dropped. Calls of function tools are not, though a model may put one on the
/// wrong channel: their results stay in the history.
fn is_analysis(message: &Message) -> bool {
    let header = &message.header;
    let is_function = |name: &Option<String>| name.as_deref().is_some_and(|name| name.starts_with("functions."));
    header.channel.as_deref() == Some("analysis") && !is_function(&header.recipient) && !is_function(&header.name)
}

fn function_tools(messages: &[Message]) -> FunctionTools {
    let defined = messages.iter().any(|message| match &message.content {
        Content::Developer(developer) => developer.function_tools() == FunctionTools::Defined,
        Content::Text(_) | Content::System(_) => false,
    });
    if defined { FunctionTools::Defined } else { FunctionTools::None }
}

fn encode(tokenizer: &Tokenizer, tokens: &HarmonyTokens, segments: &[Segment<'_>]) -> Vec<u32> {
    let mut ids = Vec::new();
    for segment in segments {
        match segment {
            Segment::Control(control) => ids.extend(tokens.id(*control)),
            Segment::Text(text) => ids.extend(tokenizer.encode(text)),
        }
    }
    ids
}

fn text(segments: &[Segment<'_>]) -> String {
    segments
        .iter()
        .map(|segment| match segment {
            Segment::Control(control) => control.name(),
            Segment::Text(text) => text.as_ref(),
        })
        .collect()
}

#[cfg(test)]
mod tests;
