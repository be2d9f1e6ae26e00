//! A module as one HTML page: the data flow of every function beside its text. No script, nothing loaded from elsewhere.

use std::fmt::Write;

use super::svg::{card, svg_func};
use crate::module::Module;
use crate::text::print_func;

/// Style of pages and pictures, light and dark.
pub const STYLE: &str = include_str!("style.css");

/// Text for HTML, in elements and in quoted attributes.
pub fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            c => out.push(c),
        }
    }
    out
}

/// A whole page around `body`.
pub fn page(title: &str, body: &str) -> String {
    format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n<title>{}</title>\n\
         <style>\n{STYLE}</style>\n</head>\n<body>\n{body}</body>\n</html>\n",
        escape(title)
    )
}

/// A page about a module.
pub fn html(module: &Module) -> String {
    let mut body = String::from("<h1>Module</h1>\n");
    for f in &module.funcs {
        // Writing to a string cannot fail.
        let _ = writeln!(
            body,
            "<section><h2>@{}</h2>\n<div class=\"beside\"><div>{}</div><pre class=\"ir\">{}</pre></div></section>",
            escape(&f.name),
            svg_func(f, &|id| card(f, id)),
            escape(&print_func(f))
        );
    }
    page("Module", &body)
}
