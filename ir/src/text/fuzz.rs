//! Bodies for fuzzers and property tests: they take any input, and panic only if a promise of this module is broken.

use super::{parse, parse_decomp, print, same};
use crate::op::OpKind;
use crate::verify::{Stage, verify};

/// Reads any bytes as a module. Errors must render; a module that is read must print, read back equal and verify or be refused.
pub fn module(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    match parse("fuzz.gir", &text) {
        Ok(module) => {
            let printed = print(&module);
            let again = parse("printed.gir", &printed).unwrap_or_else(|e| panic!("{}\n{printed}", e.render()));
            if let Err(e) = same(&module, &again) {
                panic!("{e}\n{printed}");
            }
            assert_eq!(printed, print(&again));
            for stage in [Stage::Tensor, Stage::Planned] {
                if let Err(e) = verify(&module, stage) {
                    assert!(!e.errors.is_empty() && !e.to_string().contains('\n'), "{e}");
                    assert!(!e.render(Some(("fuzz.gir", &text))).is_empty());
                }
            }
            crate::dump::dot(&module);
            crate::dump::json(&module);
        }
        Err(e) => {
            assert!(!e.errors.is_empty());
            assert!(!e.to_string().contains('\n'), "{e}");
            assert!(!e.render().is_empty() && !e.render_styled().is_empty());
        }
    }
}

/// Reads any bytes as a decomposition of an op with attributes of every kind.
pub fn decomp(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    for kind in [OpKind::Swiglu, OpKind::RmsNorm, OpKind::Softmax] {
        if let (Ok(attrs), Err(e)) =
            (kind.complete_attrs(Default::default()), parse_decomp("fuzz.gir", &text, &Default::default()))
        {
            e.render();
            drop(parse_decomp("fuzz.gir", &text, &attrs));
        }
    }
}
