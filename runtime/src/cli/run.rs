//! `gossamer run`.

use std::io::IsTerminal;
use std::path::Path;
use std::time::Instant;

use serde_json::json;

use super::args::RunArgs;
use super::converse::{Display, preamble, stop_set};
use super::output::{self, Failure};
use crate::generate::{Flow, Request, generate};
use crate::session::Session;
use crate::text::harmony::{History, Message, render_prompt};

pub fn run(args: &RunArgs) -> Result<(), Failure> {
    let (model, prompt) = words(args)?;
    let mut session = super::system::open(&args.model.session(&model)?)?;
    let plain = args.raw || !session.engine.config().speaks_harmony();
    let raw = plain || args.tokens.is_some();
    let tokens = prompt_tokens(args, &session, prompt, plain)?;
    let mut params = args.sampling.params(&session.generation);
    params.logprobs = args.logprobs;
    params.check(session.engine.config().vocab()).map_err(|e| Failure::Usage(e.to_string()))?;
    let room = session.engine.options().context.saturating_sub(tokens.len()) + 1;
    let request = Request {
        prompt: tokens,
        max_tokens: args.max_tokens.unwrap_or(room).min(room),
        stop: stop_set(&session),
        params: params.clone(),
    };
    let mut display = if args.json { None } else { Some(Display::new(&session, raw)?) };
    let mut failure = None;
    // Apart from the answer's own time, which is what another prompt would take.
    let begun = Instant::now();
    session.engine.prepare(&request.prompt, &params, request.max_tokens > 1)?;
    let ready = begun.elapsed().as_secs_f64();
    let (answers, timing) =
        generate(&mut session.engine, std::slice::from_ref(&request), &mut |_, sampled| match display
            .as_mut()
            .map_or(Ok(()), |d| d.token(sampled.token))
        {
            Ok(()) => Flow::Continue,
            Err(e) => {
                failure = Some(e);
                Flow::Stop
            }
        })?;
    if let Some(e) = failure {
        return Err(e);
    }
    let answer = &answers[0];
    match display {
        Some(d) => {
            d.finish()?;
            note!(
                "[{} prompt tokens, first token after {:.1} ms ({ready:.2} s to load); {} tokens at {:.1} tok/s; seed {}; {}]",
                timing.prompt_tokens,
                timing.first_token.as_secs_f64() * 1e3,
                timing.generated,
                timing.decode_rate(),
                params.seed,
                session.engine.describe(),
            );
            Ok(())
        }
        None => {
            let ids: Vec<u32> = answer.tokens.iter().map(|t| t.token).collect();
            let messages = match (&session.tokenizer, raw) {
                (Some(t), false) => messages_json(t, &ids)?,
                _ => json!(null),
            };
            let logprobs: Vec<_> = answer
                .tokens
                .iter()
                .filter_map(|t| t.logprobs.as_ref())
                .map(|l| json!({ "logprob": l.token, "top": l.top }))
                .collect();
            output::json(&json!({
                "model": session.name,
                "device": session.engine.describe(),
                "prompt_tokens": request.prompt,
                "tokens": ids,
                "text": session.tokenizer.as_ref().map(|t| t.decode(&ids)),
                "messages": messages,
                "logprobs": if args.logprobs { json!(logprobs) } else { json!(null) },
                "finish": answer.finish.name(),
                "seed": params.seed,
                "ready_s": ready,
                "first_token_s": timing.first_token.as_secs_f64(),
                "tokens_per_s": timing.decode_rate(),
            }))
        }
    }
}

/// The messages of an answer for JSON.
fn messages_json(
    tokenizer: &std::sync::Arc<crate::text::Tokenizer>,
    ids: &[u32],
) -> Result<serde_json::Value, Failure> {
    let mut parser = crate::text::harmony::Parser::for_completion(tokenizer.clone())?;
    for id in ids {
        parser.push(*id);
    }
    parser.finish();
    let messages = parser.into_messages();
    Ok(messages
        .iter()
        .map(|m| {
            json!({
                "role": m.header.role.name(), "channel": m.header.channel, "recipient": m.header.recipient,
                "content": m.text(),
            })
        })
        .collect())
}

/// MODEL and PROMPT from the positional words.
fn words(args: &RunArgs) -> Result<(String, Option<String>), Failure> {
    let w = &args.words;
    match (w.as_slice(), args.tokens.is_some()) {
        ([], _) => Ok(("demo".into(), None)),
        ([model], true) => Ok((model.clone(), None)),
        // `echo hello | gossamer run FOLDER`
        ([model], false) if !std::io::stdin().is_terminal() && (model == "demo" || Path::new(model).is_dir()) => {
            Ok((model.clone(), None))
        }
        // A mistyped folder must not become a prompt of the demo model.
        ([path], false) if is_path(path) && !Path::new(path).exists() => Err(Failure::Usage(format!(
            "there is no folder {path}; for a prompt that begins like a path write: gossamer run demo '{path}'"
        ))),
        ([prompt], false) => Ok(("demo".into(), Some(prompt.clone()))),
        ([_, _], true) => Err(Failure::Usage("give either a prompt or --tokens, not both".into())),
        ([model, prompt, ..], false) => Ok((model.clone(), Some(prompt.clone()))),
        _ => Err(Failure::Usage("too many words; quote the prompt".into())),
    }
}

/// Whether a word is written as a path: from the root, the home or a folder by its dots, without spaces.
fn is_path(word: &str) -> bool {
    let begins = ["/", "./", "../", "~/"].iter().any(|p| word.len() > p.len() && word.starts_with(p));
    begins && !word.contains(char::is_whitespace)
}

/// The ids of the prompt: of a conversation in harmony format, or of `plain` text with what the tokenizer puts before every text.
fn prompt_tokens(args: &RunArgs, session: &Session, prompt: Option<String>, plain: bool) -> Result<Vec<u32>, Failure> {
    if let Some(path) = &args.tokens {
        return output::read_tokens(path);
    }
    let Some(tokenizer) = &session.tokenizer else {
        return Err(Failure::Failed(format!(
            "{} has no tokenizer.json; copy it into the folder, name one with --tokenizer, or give ids with --tokens",
            session.name
        )));
    };
    let prompt = match prompt {
        Some(p) => p,
        None if std::io::stdin().is_terminal() => {
            return Err(Failure::Usage("no prompt; write it behind the command or pipe it in".into()));
        }
        None => output::read_all(std::io::stdin().lock(), "stdin")?.trim_end_matches('\n').to_string(),
    };
    if prompt.trim().is_empty() {
        return Err(Failure::Usage("the prompt is empty; write something".into()));
    }
    let tokens = match plain {
        true => [tokenizer.text_prefix(), &tokenizer.encode(&prompt)].concat(),
        false => {
            let mut messages = preamble(&args.prompt)?;
            messages.push(Message::user(prompt));
            render_prompt(tokenizer, &messages, History::default())?
        }
    };
    match tokens.is_empty() {
        true => Err(Failure::Usage("the prompt is empty; write something".into())),
        false => Ok(tokens),
    }
}
