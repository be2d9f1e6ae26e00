//! Text in and out: tokenizer, UTF-8 safe streaming, the harmony chat format, and the stop set.
//!
//! Owns everything between a person's text and token ids. Knows nothing of models, devices, sampling or the command line:
//! its inputs are a `tokenizer.json`, messages and token ids; its outputs are token ids, messages and text.
//!
//! Two rules hold everywhere in this module:
//!
//! - **Text never becomes structure.** Message bodies and header values are encoded with special tokens switched off, so
//!   `<|end|>` typed by a user is seven ordinary tokens. Control tokens are only ever added by name, by the renderer.
//! - **Output is never lost and never fatal.** Any sequence of ids decodes and parses: unknown ids are empty, malformed
//!   headers become text, invalid UTF-8 becomes U+FFFD.
//!
//! ```
//! use std::sync::Arc;
//! use gossamer_runtime::text::harmony::{self, Event, History, Message, Parser};
//! use gossamer_runtime::text::{StopSet, Tokenizer};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let demo = concat!(env!("CARGO_MANIFEST_DIR"), "/../models/demo");
//! let tokenizer = Arc::new(Tokenizer::load(demo)?);
//!
//! // Prompt: `<|start|>user<|message|>...<|end|><|start|>assistant`.
//! let messages = [Message::user("Tell me a story about a fox and a lantern.")];
//! let prompt = harmony::render_prompt(&tokenizer, &messages, History::default())?;
//! assert_eq!(tokenizer.decode(&prompt[..1]), "<|start|>");
//!
//! // The model's answer, token by token.
//! let stop = StopSet::for_tokenizer(&tokenizer);
//! let controls = tokenizer.control().harmony(&tokenizer)?;
//! let mut answer = vec![controls.channel];
//! answer.extend(tokenizer.encode("final"));
//! answer.push(controls.message);
//! answer.extend(tokenizer.encode("Once upon a time."));
//! answer.push(controls.return_);
//!
//! let mut parser = Parser::for_completion(tokenizer.clone())?;
//! let mut shown = String::new();
//! for id in answer {
//!     for event in parser.push(id) {
//!         if let Event::ContentDelta(text) = event {
//!             shown.push_str(&text);
//!         }
//!     }
//!     if stop.contains(id) {
//!         break;
//!     }
//! }
//! parser.finish();
//! assert_eq!(shown, "Once upon a time.");
//! assert_eq!(parser.messages()[0].header.channel.as_deref(), Some("final"));
//! # Ok(())
//! # }
//! ```

mod byte_level;
mod control;
mod error;
pub mod fuzz;
pub mod harmony;
mod stop;
mod stream;
mod tokenizer;
mod tokenizer_config;
mod tokenizer_file;

pub use control::{Control, ControlTokens, HarmonyTokens};
pub use error::TokenizerError;
pub use stop::StopSet;
pub use stream::Utf8Stream;
pub use tokenizer::{SpecialIds, Tokenizer};
