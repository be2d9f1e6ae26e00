//! `gossamer chat`: turns with line editing. Ctrl-C stops an answer, Ctrl-D ends the chat.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustyline::error::ReadlineError;

use super::args::ChatArgs;
use super::converse::{Display, preamble, stop_set};
use super::output::{self, Failure};
use crate::engine::Sampled;
use crate::generate::{Finish, Flow, Request, generate_until};
use crate::session::Session;
use crate::text::harmony::{DeveloperContent, History, Message, render_prompt};

const HELP: &str = "\
/reset          forget the conversation
/system TEXT    set the developer instructions and forget the conversation; without TEXT: none
/help           this list
/quit           leave (or Ctrl-D); Ctrl-C stops an answer
";

pub fn chat(args: &ChatArgs) -> Result<(), Failure> {
    let mut session = super::system::open(&args.model.session(&args.model_name)?)?;
    let Some(tokenizer) = session.tokenizer.clone() else {
        return Err(Failure::Failed(format!(
            "{} has no tokenizer.json; copy it into the folder or name one with --tokenizer",
            session.name
        )));
    };
    if !session.engine.config().speaks_harmony() {
        return Err(Failure::Failed(format!(
            "{} is a {} model and has no harmony chat format; complete text with `gossamer run` instead",
            session.name,
            session.engine.config().model_type()
        )));
    }
    tokenizer.control().harmony(&tokenizer)?;
    let mut params = args.sampling.params(&session.generation);
    params.check(session.engine.config().vocab()).map_err(|e| Failure::Usage(e.to_string()))?;

    let stop = Arc::new(AtomicBool::new(false));
    let handler = stop.clone();
    ctrlc::set_handler(move || handler.store(true, Ordering::SeqCst))
        .map_err(|e| Failure::Failed(format!("cannot catch Ctrl-C: {e}")))?;
    let mut editor = rustyline::DefaultEditor::new().map_err(|e| Failure::Failed(format!("cannot edit lines: {e}")))?;
    note!("{} on {}; /help lists commands", session.name, session.engine.describe());

    let mut start = preamble(&args.prompt)?;
    let mut messages = start.clone();
    loop {
        let line = match editor.readline("> ") {
            Ok(line) => line,
            Err(ReadlineError::Interrupted) => continue,
            Err(ReadlineError::Eof) => return Ok(()),
            Err(e) => return Err(Failure::Failed(format!("cannot read a line: {e}"))),
        };
        let line = line.trim();
        let (word, rest) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
        match word {
            "" => continue,
            "/quit" | "/exit" => return Ok(()),
            "/help" => output::text(HELP)?,
            "/reset" => messages = start.clone(),
            "/system" => {
                start = preamble(&super::args::PromptArgs { instructions: None, ..args.prompt.clone() })?;
                if !rest.trim().is_empty() {
                    start.push(Message::developer(DeveloperContent::new(rest.trim())));
                }
                messages = start.clone();
            }
            _ if word.starts_with('/') => note!("unknown command {word}; /help lists them"),
            _ => {
                // A line that the terminal keeps for Up; losing it is harmless.
                let _ = editor.add_history_entry(line);
                messages.push(Message::user(line));
                stop.store(false, Ordering::SeqCst);
                match answer(args, &mut session, &messages, &params, &stop) {
                    Ok(reply) => messages.extend(reply),
                    Err(Failure::Failed(message)) => {
                        messages.pop();
                        note!("error: {message}");
                    }
                    Err(e) => return Err(e),
                }
                params.seed = params.seed.wrapping_add(1);
            }
        }
    }
}

/// One answer, streamed; its messages.
fn answer(
    args: &ChatArgs,
    session: &mut Session,
    messages: &[Message],
    params: &crate::engine::SamplingParams,
    stop: &AtomicBool,
) -> Result<Vec<Message>, Failure> {
    let Some(tokenizer) = session.tokenizer.clone() else { return Ok(vec![]) };
    let prompt = render_prompt(&tokenizer, messages, History::default())?;
    let room = session.engine.options().context.saturating_sub(prompt.len()) + 1;
    let request = Request {
        prompt,
        params: params.clone(),
        max_tokens: args.max_tokens.unwrap_or(room).min(room),
        stop: stop_set(session),
    };
    let mut display = Display::new(session, false)?;
    let mut failure = None;
    let stopped = || stop.load(Ordering::SeqCst);
    let mut on_token = |_: usize, sampled: &Sampled| {
        if let Err(e) = display.token(sampled.token) {
            failure = Some(e);
        }
        if failure.is_some() || stopped() { Flow::Stop } else { Flow::Continue }
    };
    let (answers, timing) = generate_until(&mut session.engine, &[request], &mut on_token, &stopped)?;
    if let Some(e) = failure {
        return Err(e);
    }
    let reply = display.finish()?;
    let note = match answers[0].finish {
        Finish::Cancelled => ", stopped",
        Finish::Length => ", cut at the limit",
        Finish::Stop => "",
    };
    note!("[{} tokens at {:.1} tok/s{note}]", timing.generated, timing.decode_rate());
    Ok(reply)
}
