//! JSON schemas as the TypeScript-like types in which harmony shows tools to the model.

use serde_json::Value;

/// The type of a schema. Nested lines begin with `indent`.
pub(super) fn type_of(schema: &Value, indent: &str) -> String {
    if let Some(variants) = schema["oneOf"].as_array() {
        return variants
            .iter()
            .map(|variant| {
                let comment =
                    trailing_comment(variant["description"].as_str(), default_of(variant, EnumDefault::Quoted));
                format!("\n{indent} | {}{comment}", variant_type(variant, indent))
            })
            .collect();
    }
    if let Some(types) = schema["type"].as_array() {
        let names: Vec<&str> = types.iter().filter_map(Value::as_str).map(scalar_name).collect();
        if !names.is_empty() {
            return names.join(" | ");
        }
    }
    match schema["type"].as_str() {
        Some("object") => object_type(schema, indent),
        Some("string") => string_type(schema),
        Some("integer" | "number") => "number".to_owned(),
        Some("boolean") => "boolean".to_owned(),
        Some("array") => match schema.get("items") {
            Some(items) => format!("{}[]", type_of(items, indent)),
            None => "Array<any>".to_owned(),
        },
        _ => "any".to_owned(),
    }
}

/// How the default of a string enum is written: the reference renderer quotes it in a bare `oneOf` and nowhere else.
#[derive(Clone, Copy, PartialEq)]
enum EnumDefault {
    Quoted,
    Bare,
}

fn scalar_name(name: &str) -> &str {
    match name {
        "integer" => "number",
        other => other,
    }
}

fn string_type(schema: &Value) -> String {
    let values: Vec<String> = string_enum(schema).map(|value| format!("\"{value}\"")).collect();
    match values.is_empty() {
        true => "string".to_owned(),
        false => values.join(" | "),
    }
}

fn string_enum(schema: &Value) -> impl Iterator<Item = &str> {
    schema["enum"].as_array().into_iter().flatten().filter_map(Value::as_str)
}

fn object_type(schema: &Value, indent: &str) -> String {
    let mut out = String::new();
    if let Some(description) = schema["description"].as_str() {
        out.push_str(&format!("{indent}// {description}\n"));
    }
    out.push_str("{\n");
    for (name, field) in schema["properties"].as_object().into_iter().flatten() {
        let required = schema["required"].as_array().is_some_and(|names| names.iter().any(|other| other == name));
        let mark = if required { "" } else { "?" };
        push_field(&mut out, &format!("{name}{mark}"), field, indent);
    }
    out.push_str(indent);
    out.push('}');
    out
}

fn push_field(out: &mut String, name: &str, field: &Value, indent: &str) {
    if let Some(title) = field["title"].as_str() {
        out.push_str(&format!("{indent}// {title}\n{indent}//\n"));
    }
    let variants = field["oneOf"].as_array();
    if variants.is_none()
        && let Some(description) = field["description"].as_str()
    {
        out.push_str(&format!("{indent}// {description}\n"));
    }
    let examples = field["examples"].as_array().map(Vec::as_slice).unwrap_or_default();
    if !examples.is_empty() {
        out.push_str(&format!("{indent}// Examples:\n"));
        for example in examples.iter().filter_map(Value::as_str) {
            out.push_str(&format!("{indent}// - \"{example}\"\n"));
        }
    }
    match variants {
        Some(variants) => push_variants(out, name, field, variants, indent),
        None => {
            let nested = format!("{indent}    ");
            let comment = default_of(field, EnumDefault::Bare).map(|text| format!(" // {text}")).unwrap_or_default();
            out.push_str(&format!("{indent}{name}: {},{comment}\n", nullable(type_of(field, &nested), field)));
        }
    }
}

/// A field with `oneOf`: its own comments above, one line per variant, a closing comma.
fn push_variants(out: &mut String, name: &str, field: &Value, variants: &[Value], indent: &str) {
    let description = field["description"].as_str();
    // A description equal to the first variant's is written neither above nor beside it, as in the reference renderer.
    let first = variants.first().and_then(|variant| variant["description"].as_str());
    let above = description.filter(|&text| first != Some(text));
    if let Some(text) = above {
        out.push_str(&format!("{indent}// {text}\n"));
    }
    if let Some(text) = default_of(field, EnumDefault::Bare) {
        out.push_str(&format!("{indent}// {text}\n"));
    }
    out.push_str(&format!("{indent}{name}:\n"));
    for (i, variant) in variants.iter().enumerate() {
        let own = variant["description"].as_str().filter(|&text| description != Some(text));
        let own = own.filter(|_| i > 0 || above.is_none());
        let comment = trailing_comment(own, default_of(variant, EnumDefault::Bare));
        out.push_str(&format!("{indent} | {}{comment}\n", variant_type(variant, indent)));
    }
    out.push_str(&format!("{indent},\n"));
}

fn variant_type(variant: &Value, indent: &str) -> String {
    nullable(type_of(variant, &format!("{indent}   ")), variant)
}

fn nullable(text: String, schema: &Value) -> String {
    match schema["nullable"].as_bool().unwrap_or(false) && !text.contains("null") {
        true => format!("{text} | null"),
        false => text,
    }
}

fn default_of(schema: &Value, enums: EnumDefault) -> Option<String> {
    let default = schema.get("default")?;
    Some(match default.as_str() {
        Some(text) if enums == EnumDefault::Bare && has_enum(schema) => format!("default: {text}"),
        Some(text) => format!("default: \"{text}\""),
        None => format!("default: {default}"),
    })
}

fn has_enum(schema: &Value) -> bool {
    schema["enum"].as_array().is_some_and(|values| !values.is_empty())
}

fn trailing_comment(description: Option<&str>, default: Option<String>) -> String {
    let parts: Vec<String> = description.map(str::to_owned).into_iter().chain(default).collect();
    match parts.is_empty() {
        true => String::new(),
        false => format!(" // {}", parts.join(" ")),
    }
}
