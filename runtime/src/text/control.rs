//! Control tokens, looked up by name.

use super::{Tokenizer, TokenizerError};

/// A control token of the harmony format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Control {
    /// `<|start|>`: begins a message header.
    Start,
    /// `<|end|>`: ends a message.
    End,
    /// `<|message|>`: ends the header, begins the content.
    Message,
    /// `<|channel|>`: the channel name follows.
    Channel,
    /// `<|constrain|>`: the name of the content's format follows.
    Constrain,
    /// `<|return|>`: ends the last message of an answer.
    Return,
    /// `<|call|>`: ends a message that calls a tool.
    Call,
    /// `<|endoftext|>`: ends a document; also the padding token.
    EndOfText,
    /// `<|startoftext|>`: begins a document; not used by harmony.
    StartOfText,
}

impl Control {
    /// Every control token, in declaration order.
    pub const ALL: [Control; 9] = [
        Control::Start,
        Control::End,
        Control::Message,
        Control::Channel,
        Control::Constrain,
        Control::Return,
        Control::Call,
        Control::EndOfText,
        Control::StartOfText,
    ];

    /// The token's name in `tokenizer.json`, such as `<|start|>`.
    pub fn name(self) -> &'static str {
        match self {
            Control::Start => "<|start|>",
            Control::End => "<|end|>",
            Control::Message => "<|message|>",
            Control::Channel => "<|channel|>",
            Control::Constrain => "<|constrain|>",
            Control::Return => "<|return|>",
            Control::Call => "<|call|>",
            Control::EndOfText => "<|endoftext|>",
            Control::StartOfText => "<|startoftext|>",
        }
    }
}

/// The ids of the control tokens a tokenizer has. Each is absent where the model lacks the token.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ControlTokens {
    /// Id of `<|start|>`.
    pub start: Option<u32>,
    /// Id of `<|end|>`.
    pub end: Option<u32>,
    /// Id of `<|message|>`.
    pub message: Option<u32>,
    /// Id of `<|channel|>`.
    pub channel: Option<u32>,
    /// Id of `<|constrain|>`.
    pub constrain: Option<u32>,
    /// Id of `<|return|>`.
    pub return_: Option<u32>,
    /// Id of `<|call|>`.
    pub call: Option<u32>,
    /// Id of `<|endoftext|>`.
    pub endoftext: Option<u32>,
    /// Id of `<|startoftext|>`.
    pub startoftext: Option<u32>,
}

impl ControlTokens {
    /// Looks every control token up with `id_of`.
    pub(super) fn look_up(id_of: impl Fn(&str) -> Option<u32>) -> Self {
        let id = |control: Control| id_of(control.name());
        Self {
            start: id(Control::Start),
            end: id(Control::End),
            message: id(Control::Message),
            channel: id(Control::Channel),
            constrain: id(Control::Constrain),
            return_: id(Control::Return),
            call: id(Control::Call),
            endoftext: id(Control::EndOfText),
            startoftext: id(Control::StartOfText),
        }
    }

    /// The id of one control token.
    pub fn id(&self, control: Control) -> Option<u32> {
        match control {
            Control::Start => self.start,
            Control::End => self.end,
            Control::Message => self.message,
            Control::Channel => self.channel,
            Control::Constrain => self.constrain,
            Control::Return => self.return_,
            Control::Call => self.call,
            Control::EndOfText => self.endoftext,
            Control::StartOfText => self.startoftext,
        }
    }

    /// Whether the tokens that delimit harmony messages are all there, so that the model speaks harmony.
    pub fn has_harmony(&self) -> bool {
        self.start.is_some() && self.end.is_some() && self.message.is_some() && self.channel.is_some()
    }

    /// The tokens that rendering and parsing harmony need. `tokenizer` is the one these ids came from; it names the file in
    /// the error for the first token that is missing.
    pub fn harmony(&self, tokenizer: &Tokenizer) -> Result<HarmonyTokens, TokenizerError> {
        let need = |control: Control| {
            self.id(control).ok_or_else(|| TokenizerError::MissingControl {
                file: tokenizer.file().to_owned(),
                token: control.name(),
            })
        };
        Ok(HarmonyTokens {
            start: need(Control::Start)?,
            end: need(Control::End)?,
            message: need(Control::Message)?,
            channel: need(Control::Channel)?,
            constrain: need(Control::Constrain)?,
            return_: need(Control::Return)?,
            call: need(Control::Call)?,
            endoftext: self.endoftext,
            startoftext: self.startoftext,
        })
    }
}

/// The ids of the control tokens harmony needs, all present.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HarmonyTokens {
    /// Id of `<|start|>`.
    pub start: u32,
    /// Id of `<|end|>`.
    pub end: u32,
    /// Id of `<|message|>`.
    pub message: u32,
    /// Id of `<|channel|>`.
    pub channel: u32,
    /// Id of `<|constrain|>`.
    pub constrain: u32,
    /// Id of `<|return|>`.
    pub return_: u32,
    /// Id of `<|call|>`.
    pub call: u32,
    /// Id of `<|endoftext|>`, where the model has one.
    pub endoftext: Option<u32>,
    /// Id of `<|startoftext|>`, where the model has one.
    pub startoftext: Option<u32>,
}

impl HarmonyTokens {
    /// The id of one control token; absent only for the two that harmony can do without.
    pub fn id(&self, control: Control) -> Option<u32> {
        match control {
            Control::Start => Some(self.start),
            Control::End => Some(self.end),
            Control::Message => Some(self.message),
            Control::Channel => Some(self.channel),
            Control::Constrain => Some(self.constrain),
            Control::Return => Some(self.return_),
            Control::Call => Some(self.call),
            Control::EndOfText => self.endoftext,
            Control::StartOfText => self.startoftext,
        }
    }

    /// Which control token `id` is, if it is one of these.
    pub fn classify(&self, id: u32) -> Option<Control> {
        Control::ALL.into_iter().find(|&control| self.id(control) == Some(id))
    }
}
