//! System and developer messages: their parts and their text.

use std::fmt;
use std::str::FromStr;

use serde_json::Value;

use super::typescript;

/// How long the model should think before it answers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum ReasoningEffort {
    /// Little or no analysis.
    Low,
    /// The default.
    #[default]
    Medium,
    /// Long analysis.
    High,
}

impl ReasoningEffort {
    /// The word in the system message.
    pub fn name(self) -> &'static str {
        match self {
            ReasoningEffort::Low => "low",
            ReasoningEffort::Medium => "medium",
            ReasoningEffort::High => "high",
        }
    }
}

impl fmt::Display for ReasoningEffort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for ReasoningEffort {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "low" => Ok(ReasoningEffort::Low),
            "medium" => Ok(ReasoningEffort::Medium),
            "high" => Ok(ReasoningEffort::High),
            _ => Err(format!("reasoning effort: found {text:?}, expected low, medium or high")),
        }
    }
}

/// The parts of a system message. The default is the text GPT-OSS was trained with, without a date.
#[derive(Clone, Debug, PartialEq)]
pub struct SystemContent {
    /// The first line, who the model is.
    pub identity: Option<String>,
    /// `YYYY-MM`.
    pub knowledge_cutoff: Option<String>,
    /// `YYYY-MM-DD`. Never read from a clock here, so that a prompt is a function of its inputs.
    pub current_date: Option<String>,
    /// The `Reasoning:` line.
    pub reasoning_effort: Option<ReasoningEffort>,
    /// Built-in tools, in order.
    pub tools: Vec<ToolNamespace>,
    /// The channels every message must name one of; no line when empty.
    pub valid_channels: Vec<String>,
}

impl Default for SystemContent {
    fn default() -> Self {
        Self {
            identity: Some("You are ChatGPT, a large language model trained by OpenAI.".to_owned()),
            knowledge_cutoff: Some("2024-06".to_owned()),
            current_date: None,
            reasoning_effort: Some(ReasoningEffort::Medium),
            tools: Vec::new(),
            valid_channels: ["analysis", "commentary", "final"].map(str::to_owned).to_vec(),
        }
    }
}

impl SystemContent {
    /// The same with today's date, `YYYY-MM-DD`, as the caller knows it.
    pub fn with_current_date(mut self, date: impl Into<String>) -> Self {
        self.current_date = Some(date.into());
        self
    }

    /// The same with another effort.
    pub fn with_reasoning_effort(mut self, effort: ReasoningEffort) -> Self {
        self.reasoning_effort = Some(effort);
        self
    }

    /// The message's text. When the conversation defines function tools, `functions` says so and the channels line is
    /// followed by where calls must go.
    pub(super) fn text(&self, functions: FunctionTools) -> String {
        let mut head = Vec::new();
        head.extend(self.identity.clone());
        head.extend(self.knowledge_cutoff.as_ref().map(|cutoff| format!("Knowledge cutoff: {cutoff}")));
        head.extend(self.current_date.as_ref().map(|date| format!("Current date: {date}")));

        let mut sections = Vec::new();
        if !head.is_empty() {
            sections.push(head.join("\n"));
        }
        sections.extend(self.reasoning_effort.map(|effort| format!("Reasoning: {effort}")));
        sections.extend(tools_section(&self.tools));
        if !self.valid_channels.is_empty() {
            let channels = self.valid_channels.join(", ");
            let mut line = format!("# Valid channels: {channels}. Channel must be included for every message.");
            if functions == FunctionTools::Defined {
                line.push_str("\nCalls to these tools must go to the commentary channel: 'functions'.");
            }
            sections.push(line);
        }
        sections.join("\n\n")
    }
}

/// Whether a conversation's developer messages define function tools.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FunctionTools {
    None,
    Defined,
}

/// The parts of a developer message.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct DeveloperContent {
    /// What is commonly called the system prompt.
    pub instructions: Option<String>,
    /// Tools by namespace, in order.
    pub tools: Vec<ToolNamespace>,
    /// Named JSON schemas for the answer. They guide the model; a grammar must enforce them.
    pub response_formats: Vec<ResponseFormat>,
}

impl DeveloperContent {
    /// Instructions alone.
    pub fn new(instructions: impl Into<String>) -> Self {
        Self { instructions: Some(instructions.into()), ..Self::default() }
    }

    /// The same with function tools, called as `functions.NAME`.
    pub fn with_functions(mut self, tools: Vec<Tool>) -> Self {
        self.tools.push(ToolNamespace { name: "functions".to_owned(), description: None, tools });
        self
    }

    /// The same with a response format.
    pub fn with_response_format(mut self, format: ResponseFormat) -> Self {
        self.response_formats.push(format);
        self
    }

    pub(super) fn function_tools(&self) -> FunctionTools {
        match self.tools.iter().any(|namespace| namespace.name == "functions" && !namespace.tools.is_empty()) {
            true => FunctionTools::Defined,
            false => FunctionTools::None,
        }
    }

    pub(super) fn text(&self) -> String {
        let mut sections = Vec::new();
        if let Some(instructions) = &self.instructions {
            sections.push(format!("# Instructions\n\n{instructions}"));
        }
        sections.extend(tools_section(&self.tools));
        if !self.response_formats.is_empty() {
            sections.push("# Response Formats".to_owned());
            sections.extend(self.response_formats.iter().map(ResponseFormat::text));
        }
        sections.join("\n\n")
    }
}

/// A named JSON schema for the answer.
#[derive(Clone, Debug, PartialEq)]
pub struct ResponseFormat {
    /// Its heading.
    pub name: String,
    /// What it is for.
    pub description: Option<String>,
    /// The JSON schema, written on one line.
    pub schema: Value,
}

impl ResponseFormat {
    fn text(&self) -> String {
        let mut out = format!("## {}\n\n", self.name);
        push_comment(&mut out, self.description.as_deref().unwrap_or_default());
        out.push_str(&self.schema.to_string());
        out
    }
}

/// A group of tools under one name: a call's recipient is `NAMESPACE.TOOL`.
#[derive(Clone, Debug, PartialEq)]
pub struct ToolNamespace {
    /// `functions` for tools of the application.
    pub name: String,
    /// Text above the tools; the whole description where the namespace has no tools.
    pub description: Option<String>,
    /// The tools, in order.
    pub tools: Vec<Tool>,
}

/// A tool the model may call.
#[derive(Clone, Debug, PartialEq)]
pub struct Tool {
    /// Name within its namespace.
    pub name: String,
    /// What it does.
    pub description: String,
    /// JSON schema of its arguments; `None` when it takes none.
    pub parameters: Option<Value>,
}

impl Tool {
    /// A tool without arguments.
    pub fn new(name: impl Into<String>, description: impl Into<String>) -> Self {
        Self { name: name.into(), description: description.into(), parameters: None }
    }

    /// The same tool with arguments of this JSON schema.
    pub fn with_parameters(mut self, schema: Value) -> Self {
        self.parameters = Some(schema);
        self
    }
}

/// The `# Tools` section, if there are any.
fn tools_section(namespaces: &[ToolNamespace]) -> Option<String> {
    if namespaces.is_empty() {
        return None;
    }
    let sections = namespaces.iter().map(namespace_section);
    Some(std::iter::once("# Tools".to_owned()).chain(sections).collect::<Vec<_>>().join("\n\n"))
}

fn namespace_section(namespace: &ToolNamespace) -> String {
    let name = &namespace.name;
    let description = namespace.description.as_deref().unwrap_or_default();
    let mut out = format!("## {name}\n\n");
    if namespace.tools.is_empty() {
        out.push_str(description.trim_end());
        return out;
    }
    push_comment(&mut out, description);
    out.push_str(&format!("namespace {name} {{\n\n"));
    for tool in &namespace.tools {
        push_comment(&mut out, &tool.description);
        let arguments = match &tool.parameters {
            Some(schema) => format!("_: {}", typescript::type_of(schema, "")),
            None => String::new(),
        };
        out.push_str(&format!("type {} = ({arguments}) => any;\n\n", tool.name));
    }
    out.push_str(&format!("}} // namespace {name}"));
    out
}

/// Appends each line of `text` as a `//` line.
fn push_comment(out: &mut String, text: &str) {
    for line in text.lines() {
        out.push_str("// ");
        out.push_str(line);
        out.push('\n');
    }
}
