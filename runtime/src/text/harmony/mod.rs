//! The harmony chat format: messages, rendering to tokens, and parsing of what the model writes.
//!
//! A message on the wire is `<|start|>` header `<|message|>` content, then `<|end|>` (or `<|call|>` after a tool call, or
//! `<|return|>` where the model ends its answer). The header holds the author, optionally a recipient, a channel and a content
//! type. Channels: `analysis` is reasoning, `commentary` carries tool calls and preambles, `final` is the answer.
//!
//! Rendering and parsing are each total: every conversation renders, every sequence of ids parses.
//!
//! ```
//! use gossamer_runtime::text::harmony::{self, History, Message, SystemContent};
//!
//! let messages = [
//!     Message::system(SystemContent::default().with_current_date("2025-06-28")),
//!     Message::user("What is 2 + 2?"),
//! ];
//! let text = harmony::prompt_text(&messages, History::default());
//! assert!(text.starts_with("<|start|>system<|message|>You are ChatGPT, a large language model trained by OpenAI.\n"));
//! assert!(text.ends_with("<|start|>user<|message|>What is 2 + 2?<|end|><|start|>assistant"));
//! ```

mod content;
mod event;
mod header;
mod message;
mod parser;
mod render;
mod typescript;

pub use content::{DeveloperContent, ReasoningEffort, ResponseFormat, SystemContent, Tool, ToolNamespace};
pub use event::{EndReason, Event};
pub use message::{Content, Header, Message, MessageKind, Role};
pub use parser::Parser;
pub use render::{History, Segment, conversation_text, prompt_text, render_conversation, render_prompt, segments};

pub(super) use event::check_order as check_event_order;
