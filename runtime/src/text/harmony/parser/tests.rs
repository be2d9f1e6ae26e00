use proptest::prelude::*;

use super::*;
use crate::text::fuzz;
use crate::text::harmony::{History, MessageKind, render_conversation};

/// The ids of text in which control tokens are written by name.
fn ids(text: &str) -> Vec<u32> {
    let tokenizer = fuzz::byte_tokenizer();
    let mut ids = Vec::new();
    let mut rest = text;
    while !rest.is_empty() {
        let found = Control::ALL.into_iter().filter_map(|control| Some((rest.find(control.name())?, control))).min();
        let (at, control) = found.map_or((rest.len(), None), |(at, control)| (at, Some(control)));
        ids.extend(tokenizer.encode(&rest[..at]));
        ids.extend(control.and_then(|control| tokenizer.control().id(control)));
        rest = &rest[at + control.map_or(0, |control| control.name().len())..];
    }
    ids
}

/// A message and why it ended, in one line: `role:name>recipient|channel|type: content [reason]`.
fn line(header: &Header, text: &str, reason: EndReason) -> String {
    let part =
        |prefix: &str, value: &Option<String>| value.as_ref().map_or(String::new(), |value| format!("{prefix}{value}"));
    let name = part(":", &header.name);
    let recipient = part(">", &header.recipient);
    let channel = part("|", &header.channel);
    let content_type = part("~", &header.content_type);
    format!("{}{name}{recipient}{channel}{content_type}: {text} [{reason:?}]", header.role)
}

fn lines(events: &[Event]) -> Vec<String> {
    let mut out = Vec::new();
    let mut open: Option<(Header, String)> = None;
    for event in events {
        match event {
            Event::MessageStart { header, .. } => open = Some((header.clone(), String::new())),
            Event::ContentDelta(delta) => open.as_mut().unwrap().1.push_str(delta),
            Event::MessageEnd(reason) => {
                let (header, text) = open.take().unwrap();
                out.push(line(&header, &text, *reason));
            }
            Event::Stray(text) => out.push(format!("stray {text:?}")),
        }
    }
    out
}

fn run(mut parser: Parser, text: &str) -> Vec<String> {
    let mut events = Vec::new();
    for id in ids(text) {
        events.extend(parser.push(id));
    }
    events.extend(parser.finish());
    fuzz::harmony_parser_ids(&fuzz::byte_tokenizer(), &ids(text));
    lines(&events)
}

fn completion(text: &str) -> Vec<String> {
    run(Parser::for_completion(fuzz::byte_tokenizer()).unwrap(), text)
}

fn conversation(text: &str) -> Vec<String> {
    run(Parser::for_conversation(fuzz::byte_tokenizer()).unwrap(), text)
}

#[test]
fn reasoning_then_answer() {
    let text = "<|channel|>analysis<|message|>Think.<|end|><|start|>assistant<|channel|>final<|message|>4.<|return|>";
    assert_eq!(completion(text), ["assistant|analysis: Think. [End]", "assistant|final: 4. [Return]"]);
}

#[test]
fn deltas_stream_token_by_token() {
    let mut parser = Parser::for_completion(fuzz::byte_tokenizer()).unwrap();
    let mut seen = Vec::new();
    for id in ids("<|channel|>final<|message|>né") {
        seen.push(parser.push(id));
    }
    let starts = seen.iter().position(|events| !events.is_empty()).unwrap();
    let header = Header { channel: Some("final".to_owned()), ..Header::new(Role::Assistant) };
    assert_eq!(seen[starts], [Event::MessageStart { header, raw: "final".to_owned() }]);
    assert_eq!(seen[starts + 1], [Event::ContentDelta("n".to_owned())]);
    assert_eq!(seen[starts + 2], []);
    assert_eq!(seen[starts + 3], [Event::ContentDelta("é".to_owned())]);
    assert_eq!(parser.current().unwrap().kind(), MessageKind::Answer);
    assert_eq!(parser.finish(), [Event::MessageEnd(EndReason::Unfinished)]);
    assert_eq!(parser.into_messages(), [Message::assistant("final", "né")]);
}

#[test]
fn tool_call_with_the_recipient_on_either_side_of_the_channel() {
    let expected = ["assistant>functions.f|commentary~<|constrain|>json: {} [Call]"];
    for header in [
        "<|channel|>commentary to=functions.f <|constrain|>json",
        " to=functions.f<|channel|>commentary <|constrain|>json",
        " to=functions.f<|channel|>commentary<|constrain|>json",
        "<|channel|>commentary to=functions.f<|constrain|>json",
        "<|channel|>commentary to= functions.f <|constrain|> json",
        "<|channel|>commentary functions.f <|constrain|>json",
        "<|channel|> to=functions.f commentary <|constrain|>json",
        "assistant to=functions.f<|channel|>commentary <|constrain|>json",
    ] {
        assert_eq!(completion(&format!("{header}<|message|>{{}}<|call|>")), expected, "{header}");
    }
}

#[test]
fn bare_words_in_headers() {
    for (header, expected) in [
        ("<|channel|>commentary to=functions.f code", "assistant>functions.f|commentary~code"),
        ("<|channel|>commentary to=functions.f json", "assistant>functions.f|commentary~json"),
        ("<|channel|>commentary get_weather <|constrain|>json", "assistant>get_weather|commentary~<|constrain|>json"),
        ("<|channel|>commentary get_weather json", "assistant>get_weather|commentary~json"),
        ("<|channel|>commentary get_weather", "assistant>get_weather|commentary"),
        ("<|channel|>final <|constrain|>json", "assistant|final~<|constrain|>json"),
        ("<|channel|>final json", "assistant|final~json"),
        ("<|channel|>analysis to=browser.search code", "assistant>browser.search|analysis~code"),
        ("<|channel|>commentary?", "assistant|commentary?"),
        ("<|channel|>comment", "assistant|comment"),
        ("<|channel|>analysis<|channel|>final", "assistant|final"),
        ("<|channel|>", "assistant"),
        ("", "assistant"),
    ] {
        assert_eq!(completion(&format!("{header}<|message|>x<|end|>")), [format!("{expected}: x [End]")], "{header}");
    }
}

#[test]
fn roles_of_a_conversation() {
    let text = "<|start|>system<|message|>s<|end|><|start|>user:bob<|message|>u<|end|>\
        <|start|>functions.f to=assistant<|channel|>commentary<|message|>r<|end|><|start|>python<|message|>p<|end|>\
        <|start|>assistantfinal<|message|>a<|return|>";
    let expected = [
        "system: s [End]",
        "user:bob: u [End]",
        "tool:functions.f>assistant|commentary: r [End]",
        "tool:python: p [End]",
        "assistant|final: a [Return]",
    ];
    assert_eq!(conversation(text), expected);
}

#[test]
fn text_without_a_header() {
    assert_eq!(completion("I am sorry, I cannot.<|return|>"), ["assistant: I am sorry, I cannot. [Return]"]);
    assert_eq!(completion("Sorry<|return|>"), ["assistant: Sorry [Return]"]);
    assert_eq!(completion("抱歉，我不能这样做。"), ["assistant: 抱歉，我不能这样做。 [Unfinished]"]);
    assert_eq!(conversation("Hello there"), ["assistant: Hello there [Unfinished]"]);
    assert_eq!(conversation("assistant is a word here"), ["assistant: assistant is a word here [Unfinished]"]);
}

#[test]
fn plain_text_is_shown_before_the_message_ends() {
    let mut parser = Parser::for_completion(fuzz::byte_tokenizer()).unwrap();
    let mut shown = String::new();
    for id in ids("This is plain text without any header at all") {
        shown.extend(parser.push(id).iter().map(Event::text));
    }
    assert_eq!(shown, "This is plain text without any header at all");
}

#[test]
fn missing_message_token() {
    for (text, expected) in [
        ("<|channel|>final The answer is 4.<|return|>", "assistant|final: The answer is 4. [Return]"),
        ("<|channel|>finalThe answer is 4.<|return|>", "assistant|final: The answer is 4. [Return]"),
        ("<|channel|>analysis\n\nWe need to think<|end|>", "assistant|analysis: We need to think [End]"),
        ("<|channel|>The user wants a story<|end|>", "assistant: The user wants a story [End]"),
        (
            "<|channel|>commentary to=functions.f <|constrain|>json{\"a\": 1}<|call|>",
            "assistant>functions.f|commentary~<|constrain|>json: {\"a\": 1} [Call]",
        ),
        ("<|channel|>commentary to=functions.f{\"a\":1}<|call|>", "assistant>functions.f|commentary: {\"a\":1} [Call]"),
        (
            "<|channel|>commentary to=functions.f {\"a\": 1}<|call|>",
            "assistant>functions.f|commentary: {\"a\": 1} [Call]",
        ),
        ("<|channel|>final<|return|>", "assistant|final:  [Return]"),
    ] {
        assert_eq!(completion(text), [expected], "{text}");
    }
}

#[test]
fn missing_end_and_start_tokens() {
    let expected = ["assistant|analysis: a [NextMessage]", "assistant|final: b [Return]"];
    for text in [
        "<|channel|>analysis<|message|>a<|start|>assistant<|channel|>final<|message|>b<|return|>",
        "<|channel|>analysis<|message|>a<|channel|>final<|message|>b<|return|>",
    ] {
        assert_eq!(completion(text), expected, "{text}");
    }
    let expected = ["assistant|analysis: a [End]", "assistant|final: b [Return]"];
    for text in [
        "<|channel|>analysis<|message|>a<|end|>assistant<|channel|>final<|message|>b<|return|>",
        "<|channel|>analysis<|message|>a<|end|><|channel|>final<|message|>b<|return|>",
        "<|channel|>analysis<|message|>a<|end|><|start|><|channel|>final<|message|>b<|return|>",
    ] {
        assert_eq!(completion(text), expected, "{text}");
    }
    assert_eq!(
        completion("Let me see first<|channel|>final<|message|>b<|return|>"),
        ["assistant: Let me see first [NextMessage]", "assistant|final: b [Return]"]
    );
    assert_eq!(
        completion("<|channel|>analysis think about it<|channel|>final<|message|>b<|return|>"),
        ["assistant|analysis: think about it [NextMessage]", "assistant|final: b [Return]"]
    );
}

#[test]
fn stray_tokens_between_and_inside_messages() {
    assert_eq!(completion("<|channel|>final<|message|>x<|end|><|return|><|end|>"), ["assistant|final: x [End]"]);
    assert_eq!(
        completion("<|channel|>final<|message|>x<|message|>y<|constrain|>z<|end|>"),
        ["assistant|final: xyz [End]"]
    );
    assert_eq!(
        completion("<|startoftext|><|channel|>final<|message|>x<|endoftext|>"),
        ["assistant|final: x [EndOfText]"]
    );
    assert_eq!(
        completion(
            "<|channel|>analysis<|message|>x<|end|>\n\n<|start|>assistant<|channel|>final<|message|>y<|return|>\n"
        ),
        ["assistant|analysis: x [End]", "stray \"\\n\\n\"", "assistant|final: y [Return]", "stray \"\\n\""]
    );
    assert_eq!(
        completion("<|channel|>final<|message|>x<|end|>More.<|end|>"),
        ["assistant|final: x [End]", "assistant: More. [End]"]
    );
    assert_eq!(completion("<|return|><|end|><|start|><|end|>"), Vec::<String>::new());
}

#[test]
fn characters_do_not_continue_across_control_tokens() {
    let tokenizer = fuzz::byte_tokenizer();
    let control = tokenizer.control();
    let stream = [control.message.unwrap(), 0xC3, control.end.unwrap(), 0xA9];
    let mut parser = Parser::for_completion(tokenizer).unwrap();
    let mut events: Vec<Event> = stream.iter().flat_map(|&id| parser.push(id)).collect();
    events.extend(parser.finish());
    assert_eq!(lines(&events), ["assistant: \u{FFFD} [End]", "assistant: \u{FFFD} [Unfinished]"]);
}

#[test]
fn messages_without_content_are_kept_only_when_proper() {
    let kept = |text: &str| {
        let mut parser = Parser::for_completion(fuzz::byte_tokenizer()).unwrap();
        ids(text).into_iter().for_each(|id| drop(parser.push(id)));
        parser.into_messages()
    };
    assert_eq!(kept("<|channel|>final<|message|><|return|>"), [Message::assistant("final", "")]);
    assert_eq!(kept("<|channel|>final<|return|>"), []);
}

#[test]
fn parsers_move_between_threads() {
    fn is_send<T: Send>() {}
    fn is_shared<T: Send + Sync>() {}
    is_send::<Parser>();
    is_shared::<Tokenizer>();
}

#[test]
fn kinds_of_messages() {
    let kind = |channel: Option<&str>, recipient: Option<&str>| {
        let mut header = Header::new(Role::Assistant);
        header.channel = channel.map(str::to_owned);
        header.recipient = recipient.map(str::to_owned);
        header.kind()
    };
    assert_eq!(kind(Some("analysis"), None), MessageKind::Reasoning);
    assert_eq!(kind(Some("analysis"), Some("functions.f")), MessageKind::ToolCall);
    assert_eq!(kind(Some("commentary"), None), MessageKind::Preamble);
    assert_eq!(kind(Some("comment"), None), MessageKind::Preamble);
    assert_eq!(kind(Some("commentary"), Some("all")), MessageKind::Preamble);
    assert_eq!(kind(Some("final"), None), MessageKind::Answer);
    assert_eq!(kind(Some("whatever"), None), MessageKind::Answer);
    assert_eq!(kind(None, None), MessageKind::Answer);
    assert_eq!(Header::new(Role::User).kind(), MessageKind::Input);
}

fn word() -> impl Strategy<Value = String> {
    "[a-z][a-z_]{0,8}"
}

/// Any well-formed message as a model or an application writes them.
fn message() -> impl Strategy<Value = Message> {
    let content = prop_oneof![any::<String>(), "(<\\|(end|start|call|message)\\|>|[a-z]{1,4}| |\n){0,6}"];
    let role = prop_oneof![Just(Role::System), Just(Role::Developer), Just(Role::User), Just(Role::Assistant)];
    let channel =
        prop_oneof![Just("analysis".to_owned()), Just("commentary".to_owned()), Just("final".to_owned()), word()];
    let plain = (role, proptest::option::of(channel), proptest::option::of(word()), content.clone()).prop_map(
        |(role, channel, name, text)| {
            let mut message = Message::new(role, text);
            message.header.channel = channel;
            message.header.name = name;
            message
        },
    );
    let call = (word(), any::<bool>(), content.clone()).prop_map(|(tool, constrained, text)| {
        Message::assistant("commentary", text)
            .with_recipient(format!("functions.{tool}"))
            .with_content_type(if constrained { "<|constrain|>json" } else { "json" })
    });
    let result = (word(), content).prop_map(|(tool, text)| Message::tool(format!("functions.{tool}"), text));
    prop_oneof![plain, call, result]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn no_byte_is_lost(data in prop_oneof![
        proptest::collection::vec(any::<u8>(), 0..80),
        proptest::collection::vec(prop_oneof![0u8..24, Just(b' '), Just(b'a'), Just(0xC3), Just(b'\n')], 0..80),
    ]) {
        fuzz::harmony_parser(&data);
    }

    #[test]
    fn rendered_conversations_parse_back(messages in proptest::collection::vec(message(), 0..5)) {
        let tokenizer = fuzz::byte_tokenizer();
        let ids = render_conversation(&tokenizer, &messages, History::KeepAll).unwrap();
        let mut parser = Parser::for_conversation(tokenizer).unwrap();
        let mut ends = Vec::new();
        for id in ids {
            ends.extend(parser.push(id).into_iter().filter(|event| matches!(event, Event::MessageEnd(_))));
        }
        prop_assert_eq!(ends.len(), messages.len());
        prop_assert!(parser.finish().is_empty());
        prop_assert_eq!(parser.into_messages(), messages);
    }
}
