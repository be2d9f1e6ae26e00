//! The message model.

use std::fmt;

use super::content::{DeveloperContent, SystemContent};

/// Who wrote a message. Instructions rank in this order: system over developer over user over assistant over tool.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// The platform: identity, dates, reasoning effort, channels.
    System,
    /// The application: instructions and function tools.
    Developer,
    /// The person.
    User,
    /// The model.
    Assistant,
    /// A tool's result. On the wire the tool's name stands in place of the role.
    Tool,
}

impl Role {
    /// The role's word in a header.
    pub fn name(self) -> &'static str {
        match self {
            Role::System => "system",
            Role::Developer => "developer",
            Role::User => "user",
            Role::Assistant => "assistant",
            Role::Tool => "tool",
        }
    }

    /// The role a header word names, if it is one.
    pub fn from_name(name: &str) -> Option<Self> {
        [Role::System, Role::Developer, Role::User, Role::Assistant, Role::Tool]
            .into_iter()
            .find(|role| role.name() == name)
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Everything about a message but its content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// Who wrote it.
    pub role: Role,
    /// For [`Role::Tool`] the tool's full name, such as `functions.get_weather`; for other roles an optional author name.
    pub name: Option<String>,
    /// Whom it is for: a tool's full name in a call, `assistant` in a tool's result, absent when it is for all.
    pub recipient: Option<String>,
    /// `analysis`, `commentary`, `final`, or whatever the model wrote.
    pub channel: Option<String>,
    /// The content's type, such as `json`; begins with `<|constrain|>` where that token preceded it.
    pub content_type: Option<String>,
}

impl Header {
    /// A header with only a role.
    pub fn new(role: Role) -> Self {
        Self { role, name: None, recipient: None, channel: None, content_type: None }
    }

    /// What the message is to whoever shows or executes it. Lenient, as models are: any channel may carry a call when a
    /// recipient names a tool, and text on an unknown channel is shown rather than hidden.
    pub fn kind(&self) -> MessageKind {
        if self.role != Role::Assistant {
            return MessageKind::Input;
        }
        if self.tool().is_some() {
            return MessageKind::ToolCall;
        }
        match self.channel.as_deref() {
            Some(channel) if channel.starts_with("analy") => MessageKind::Reasoning,
            Some(channel) if channel.starts_with("comment") => MessageKind::Preamble,
            _ => MessageKind::Answer,
        }
    }

    /// The full name of the tool an assistant's message calls.
    pub fn tool(&self) -> Option<&str> {
        let recipient = self.recipient.as_deref()?;
        let to_people = ["all", "assistant", "user"].contains(&recipient);
        (self.role == Role::Assistant && !to_people).then_some(recipient)
    }
}

/// The use of a message, from [`Header::kind`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum MessageKind {
    /// Not written by the model.
    Input,
    /// Reasoning, not meant for the reader.
    Reasoning,
    /// Words to the reader on the way to a tool call.
    Preamble,
    /// A call; [`Header::tool`] names the tool and the content holds the arguments.
    ToolCall,
    /// The answer.
    Answer,
}

/// What a message says.
#[derive(Clone, Debug, PartialEq)]
pub enum Content {
    /// Text as it stands. Control token names in it are only text.
    Text(String),
    /// The parts of a system message.
    System(SystemContent),
    /// The parts of a developer message.
    Developer(DeveloperContent),
}

/// One message of a conversation.
///
/// ```
/// use gossamer_runtime::text::harmony::{Message, MessageKind, Role};
///
/// let call = Message::assistant("commentary", r#"{"city":"Paris"}"#)
///     .with_recipient("functions.get_weather")
///     .with_content_type("<|constrain|>json");
/// assert_eq!(call.header.kind(), MessageKind::ToolCall);
/// let result = Message::tool("functions.get_weather", "sunny");
/// assert_eq!((result.header.role, result.text()), (Role::Tool, Some("sunny")));
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Message {
    /// Author, recipient, channel and content type.
    pub header: Header,
    /// What it says.
    pub content: Content,
}

impl Message {
    /// A message of any role with text content.
    pub fn new(role: Role, text: impl Into<String>) -> Self {
        Self { header: Header::new(role), content: Content::Text(text.into()) }
    }

    /// A system message.
    pub fn system(content: SystemContent) -> Self {
        Self { header: Header::new(Role::System), content: Content::System(content) }
    }

    /// A developer message.
    pub fn developer(content: DeveloperContent) -> Self {
        Self { header: Header::new(Role::Developer), content: Content::Developer(content) }
    }

    /// A user's message.
    pub fn user(text: impl Into<String>) -> Self {
        Self::new(Role::User, text)
    }

    /// The model's message on a channel.
    pub fn assistant(channel: impl Into<String>, text: impl Into<String>) -> Self {
        Self::new(Role::Assistant, text).with_channel(channel)
    }

    /// The result of the tool with this full name, addressed to the assistant on `commentary`.
    pub fn tool(name: impl Into<String>, text: impl Into<String>) -> Self {
        let mut message = Self::new(Role::Tool, text).with_channel("commentary").with_recipient("assistant");
        message.header.name = Some(name.into());
        message
    }

    /// The same message on a channel.
    pub fn with_channel(mut self, channel: impl Into<String>) -> Self {
        self.header.channel = Some(channel.into());
        self
    }

    /// The same message to a recipient.
    pub fn with_recipient(mut self, recipient: impl Into<String>) -> Self {
        self.header.recipient = Some(recipient.into());
        self
    }

    /// The same message with a content type.
    pub fn with_content_type(mut self, content_type: impl Into<String>) -> Self {
        self.header.content_type = Some(content_type.into());
        self
    }

    /// The text, where the content is plain text.
    pub fn text(&self) -> Option<&str> {
        match &self.content {
            Content::Text(text) => Some(text),
            Content::System(_) | Content::Developer(_) => None,
        }
    }
}
