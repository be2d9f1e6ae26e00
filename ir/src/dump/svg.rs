//! The data flow of a function as a picture: one box an op, in the order they run, one line a value.
//!
//! Boxes stand in one column, so that reading down is reading in order. A value that the next box reads runs straight down; one that is read further down, or more
//! than once, takes a lane at the side. Weights, what is made of weights alone, other parameters and constants are named inside the boxes that read them.
//! Everything is laid out here, with widths counted in characters, so that the same function gives the same bytes.

use std::collections::BTreeMap;
use std::fmt::Write;

use super::html::escape;
use crate::graph::{OpId, Value};
use crate::module::Func;
use crate::op::{Class, OpKind};
use crate::text::{Names, order};
use crate::ty::Type;

/// What is shown of an op.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Card {
    /// First line, at the left.
    pub title: String,
    /// First line, at the right: a number, say.
    pub aside: String,
    /// Further lines: a word in front, and text.
    pub lines: Vec<(String, String)>,
    /// Where a click leads; empty: nowhere.
    pub link: String,
    /// How much of the whole this is, 0 to 1: the length of a bar. Negative: no bar.
    pub share_permille: i32,
}

const CHAR: usize = 7;
const LINE: usize = 17;
const PAD: usize = 12;
const WIDTH: usize = 660;
const LEFT: usize = 8;
const LANE: usize = 18;
/// Characters of a line in a box.
const COLUMNS: usize = (WIDTH - 2 * PAD) / CHAR;

/// What [`svg_func`] shows of an op unless told otherwise: its kind, and of a kernel its regions.
pub fn card(func: &Func, id: OpId) -> Card {
    let op = func.graph.op(id);
    let mut card = Card { title: op.kind.name().to_string(), share_permille: -1, ..Card::default() };
    if let Some(kernel) = op.attrs.kernel() {
        card.title = kernel.template().to_string();
        for (number, region) in kernel.numbered() {
            let ops = region.graph.order().unwrap_or_default().into_iter().map(|id| region.graph.op(id));
            let names: Vec<&str> = ops.filter(|o| o.kind != OpKind::Param).map(|o| o.kind.name()).collect();
            let label = match number / 3 {
                0 => region.name.to_string(),
                stage => format!("{} {}", region.name, stage + 1),
            };
            card.lines.push((label, names.join(" \u{b7} ")));
        }
    } else if op.kind == OpKind::Call {
        card.title = format!("call @{}", op.attrs.word("callee"));
    }
    card
}

/// The picture of a function; `card` says what is in each box. A whole `<svg>` element.
pub fn svg_func(func: &Func, card: &dyn Fn(OpId) -> Card) -> String {
    Drawing::new(func, card).draw()
}

struct Block {
    y: usize,
    height: usize,
    card: Card,
    rows: Vec<(String, String)>,
}

struct Drawing<'a> {
    func: &'a Func,
    names: Names,
    roles: BTreeMap<OpId, Role>,
    /// Ops with a box, in order; parameters that are drawn come first, as one box.
    ops: Vec<OpId>,
    blocks: Vec<Block>,
    /// Source block, readers (blocks, sorted), label.
    lines: Vec<(usize, Vec<usize>, String)>,
    height: usize,
}

/// How a value takes part in the picture.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    /// A weight, or made of weights and constants alone: named where it is read.
    Fixed,
    /// An index, a state or a scalar that comes in: named where it is read.
    Given,
    /// An activation that comes in: drawn as a line.
    Input,
    /// Computed: has a box.
    Computed,
}

fn roles(func: &Func, order: &[OpId]) -> BTreeMap<OpId, Role> {
    let mut out: BTreeMap<OpId, Role> = BTreeMap::new();
    for id in order {
        let op = func.graph.op(*id);
        let role = match op.kind {
            OpKind::Param if func.params.get(op.attrs.int("index") as usize).is_some_and(|p| p.weight) => Role::Fixed,
            OpKind::Param => match op.results[0].as_tensor().is_some_and(|t| t.dtype.is_float() && t.rank() > 1) {
                true => Role::Input,
                false => Role::Given,
            },
            _ if op.kind.class() == Class::Leaf => Role::Fixed,
            OpKind::Call => Role::Computed,
            _ if op.operands.iter().all(|v| out.get(&v.op) == Some(&Role::Fixed)) => Role::Fixed,
            _ => Role::Computed,
        };
        out.insert(*id, role);
    }
    out
}

impl<'a> Drawing<'a> {
    fn new(func: &'a Func, card: &dyn Fn(OpId) -> Card) -> Drawing<'a> {
        let all = order(func);
        let names = Names::new(func, &all);
        let roles = roles(func, &all);
        let with = |role: Role| all.iter().copied().filter(|id| roles.get(id) == Some(&role)).collect::<Vec<OpId>>();
        let (inputs, ops) = (with(Role::Input), with(Role::Computed));
        // Block 0 are the inputs, the last one the results.
        let mut block_of: BTreeMap<OpId, usize> = inputs.iter().map(|id| (*id, 0)).collect();
        block_of.extend(ops.iter().enumerate().map(|(i, id)| (*id, i + 1)));
        let mut readers: BTreeMap<Value, Vec<usize>> = BTreeMap::new();
        for (i, id) in ops.iter().enumerate() {
            for v in &func.graph.op(*id).operands {
                readers.entry(*v).or_default().push(i + 1);
            }
        }
        for v in &func.results {
            readers.entry(*v).or_default().push(ops.len() + 1);
        }
        let mut lines: Vec<(usize, Vec<usize>, String)> = Vec::new();
        for (v, mut to) in readers {
            let Some(from) = block_of.get(&v.op) else { continue };
            to.dedup();
            let ty = func.graph.get(v.op).and_then(|op| op.results.get(v.result as usize));
            // States go from hand to hand without moving.
            if let Some(ty @ Type::Tensor(_)) = ty {
                lines.push((*from, to, format!("{}: {ty}", names.value(v))));
            }
        }
        lines.sort();
        let mut drawing = Drawing { func, names, roles, ops, blocks: vec![], lines, height: 0 };
        drawing.stack(&inputs, card);
        drawing
    }

    /// Gives every block its text and place.
    fn stack(&mut self, inputs: &[OpId], card: &dyn Fn(OpId) -> Card) {
        let list = |values: Vec<&str>| values.join(", ");
        let inputs = inputs.iter().map(|id| self.names.value(Value { op: *id, result: 0 })).collect();
        let results = self.func.results.iter().map(|v| self.names.value(*v)).collect();
        let plain = |title: String| Card { title, share_permille: -1, ..Card::default() };
        let mut cards = vec![plain(format!("in  {}", list(inputs)))];
        for id in &self.ops {
            let mut c = card(*id);
            let op = self.func.graph.op(*id);
            let mut weights = Vec::new();
            let mut others = Vec::new();
            for v in &op.operands {
                let source = self.func.graph.op(v.op);
                let name = self.names.value(*v);
                match self.roles.get(&v.op) {
                    Some(Role::Fixed) if source.kind == OpKind::Const => {}
                    Some(Role::Fixed) => {
                        let made = match source.kind {
                            OpKind::Param | OpKind::Weight => String::new(),
                            kind => format!(" ({} at load)", kind.name()),
                        };
                        weights.push(format!("{name} {}{made}", self.func.graph.ty(*v)));
                    }
                    Some(Role::Given) => others.push(name.to_string()),
                    _ if self.func.graph.ty(*v).is_state() => others.push(name.to_string()),
                    _ => {}
                }
            }
            weights.dedup();
            others.dedup();
            if !weights.is_empty() {
                c.lines.push(("weights".into(), weights.join(", ")));
            }
            if !others.is_empty() {
                c.lines.push(("with".into(), others.join(", ")));
            }
            cards.push(c);
        }
        cards.push(plain(format!("return  {}", list(results))));
        let mut y = LEFT;
        for (i, card) in cards.into_iter().enumerate() {
            let rows: Vec<(String, String)> = card.lines.iter().flat_map(|(word, text)| wrap(word, text)).collect();
            let bar = if card.share_permille >= 0 { 6 } else { 0 };
            let height = 2 * PAD - 6 + LINE * (1 + rows.len()) + bar;
            self.blocks.push(Block { y, height, card, rows });
            let labels = self.lines.iter().filter(|(from, _, _)| *from == i).count();
            y += height + 14 + LINE * labels.max(1);
        }
        self.height = y;
    }

    fn draw(&self) -> String {
        let (lanes, width) = self.lanes();
        let mut out = format!(
            "<svg class=\"flow\" xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {0}\" width=\"{width}\" height=\"{0}\" \
             font-family=\"ui-monospace, 'DejaVu Sans Mono', monospace\" font-size=\"11.5\">\n<defs><marker id=\"arrow\" viewBox=\"0 0 8 8\" refX=\"7\" refY=\"4\" \
             markerWidth=\"7\" markerHeight=\"7\" orient=\"auto\"><path d=\"M0 0.5 L7 4 L0 7.5 z\" class=\"tip\"/></marker></defs>\n",
            self.height
        );
        self.draw_lines(&mut out, &lanes);
        self.blocks.iter().enumerate().for_each(|(i, b)| self.draw_block(&mut out, i, b));
        out.push_str("</svg>\n");
        out
    }

    /// The lane of each line, `None` for those that run straight down, and the width of the picture.
    fn lanes(&self) -> (Vec<Option<usize>>, usize) {
        let mut ends: Vec<usize> = Vec::new();
        let mut lanes = Vec::with_capacity(self.lines.len());
        let mut label_end = 0;
        for (from, to, label) in &self.lines {
            label_end = label_end.max(LEFT + 56 + CHAR * label.chars().count());
            let last = to.last().copied().unwrap_or(*from);
            if last <= from + 1 {
                lanes.push(None);
                continue;
            }
            let lane = ends.iter().position(|end| end <= from).unwrap_or(ends.len());
            match ends.get_mut(lane) {
                Some(end) => *end = last,
                None => ends.push(last),
            }
            lanes.push(Some(lane));
        }
        let right = LEFT + WIDTH + 24 + LANE * ends.len();
        (lanes, right.max(label_end) + 8)
    }

    fn draw_lines(&self, out: &mut String, lanes: &[Option<usize>]) {
        // Every line leaves at the bottom of its block, a row of labels each.
        let mut used: BTreeMap<usize, usize> = BTreeMap::new();
        let mut entered: BTreeMap<usize, usize> = BTreeMap::new();
        let x = LEFT + 40;
        for ((from, to, label), lane) in self.lines.iter().zip(lanes) {
            let row = used.entry(*from).or_default();
            let bottom = self.blocks[*from].y + self.blocks[*from].height;
            let y = bottom + 12 + LINE * *row;
            *row += 1;
            let text = |out: &mut String, class: &str| {
                let _ =
                    writeln!(out, "<text x=\"{}\" y=\"{}\" class=\"{class}\">{}</text>", x + 12, y + 4, escape(label));
            };
            let straight = to.contains(&(from + 1));
            if straight {
                let next = &self.blocks[from + 1];
                let _ = writeln!(
                    out,
                    "<path d=\"M{x} {bottom} V{}\" class=\"edge\" marker-end=\"url(#arrow)\"/>",
                    next.y - 1
                );
            }
            text(out, "value");
            let Some(lane) = lane else { continue };
            let end = LEFT + WIDTH + 16 + LANE * lane;
            let start = x + 16 + CHAR * label.chars().count();
            let stem = if straight { String::new() } else { format!("M{x} {bottom} V{y} H{} ", x + 8) };
            let ports: Vec<usize> = to.iter().filter(|t| **t > from + 1).map(|t| self.port(*t, &mut entered)).collect();
            let last = ports.last().copied().unwrap_or(y);
            let _ = writeln!(
                out,
                "<path d=\"{stem}M{} {y} H{} Q{end} {y} {end} {} V{}\" class=\"edge side\"/>",
                start.min(end - 8),
                end - 6,
                y + 6,
                last - 6
            );
            for y in ports {
                let _ = writeln!(
                    out,
                    "<path d=\"M{end} {} Q{end} {y} {} {y} H{}\" class=\"edge side\" marker-end=\"url(#arrow)\"/>",
                    y - 6,
                    end - 6,
                    LEFT + WIDTH + 1
                );
            }
        }
    }

    /// Where the next side line enters a block.
    fn port(&self, block: usize, entered: &mut BTreeMap<usize, usize>) -> usize {
        let n = entered.entry(block).or_default();
        *n += 1;
        let b = &self.blocks[block];
        b.y + (4 + 10 * *n).min(b.height - 6)
    }

    fn draw_block(&self, out: &mut String, i: usize, b: &Block) {
        let end = i == 0 || i + 1 == self.blocks.len();
        let class = if end { "end" } else { "op" };
        if !b.card.link.is_empty() {
            let _ = write!(out, "<a href=\"{}\">", escape(&b.card.link));
        }
        let _ = writeln!(
            out,
            "<rect x=\"{LEFT}\" y=\"{}\" width=\"{WIDTH}\" height=\"{}\" rx=\"5\" class=\"{class}\"/>",
            b.y, b.height
        );
        let (x, mut y) = (LEFT + PAD, b.y + PAD + 8);
        let title: String = b.card.title.chars().take(COLUMNS).collect();
        let _ = writeln!(out, "<text x=\"{x}\" y=\"{y}\" class=\"title\">{}</text>", escape(&title));
        if !b.card.aside.is_empty() {
            let right = LEFT + WIDTH - PAD;
            let _ = writeln!(
                out,
                "<text x=\"{right}\" y=\"{y}\" class=\"aside\" text-anchor=\"end\">{}</text>",
                escape(&b.card.aside)
            );
        }
        for (word, text) in &b.rows {
            y += LINE;
            let _ = writeln!(
                out,
                "<text x=\"{x}\" y=\"{y}\" class=\"word\">{}</text><text x=\"{}\" y=\"{y}\">{}</text>",
                escape(word),
                x + CHAR * WORD,
                escape(text)
            );
        }
        if b.card.share_permille >= 0 {
            let full = WIDTH - 2 * PAD;
            let length = (full * b.card.share_permille.clamp(0, 1000) as usize).div_ceil(1000);
            let _ = writeln!(
                out,
                "<rect x=\"{x}\" y=\"{0}\" width=\"{full}\" height=\"3\" class=\"track\"/><rect x=\"{x}\" y=\"{0}\" width=\"{length}\" height=\"3\" class=\"bar\"/>",
                b.y + b.height - PAD + 1
            );
        }
        if !b.card.link.is_empty() {
            out.push_str("</a>\n");
        }
    }
}

/// Characters that the word in front of a line takes.
const WORD: usize = 10;

/// A line as rows that fit a box, broken at blanks; only the first has the word.
fn wrap(word: &str, text: &str) -> Vec<(String, String)> {
    let room = COLUMNS - WORD;
    let mut rows: Vec<String> = vec![String::new()];
    for part in text.split(' ') {
        let full =
            rows.last().is_some_and(|row| !row.is_empty() && row.chars().count() + 1 + part.chars().count() > room);
        if full {
            rows.push(String::new());
        }
        if let Some(row) = rows.last_mut() {
            if !row.is_empty() {
                row.push(' ');
            }
            row.push_str(part);
        }
    }
    rows.into_iter().enumerate().map(|(i, row)| (if i == 0 { word.to_string() } else { String::new() }, row)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_break_at_blanks() {
        let text = "abcdefghi ".repeat(12);
        let rows = wrap("with", text.trim());
        assert!(rows.len() == 2 && rows.iter().all(|(_, r)| r.len() <= COLUMNS - WORD), "{rows:?}");
        assert_eq!((&*rows[0].0, &*rows[1].0), ("with", ""));
    }

    #[test]
    fn a_value_read_later_takes_a_lane() {
        let text = "gir 1\nweight @w : f32[4] = \"w\"\nfunc @f(%x: f32[2, 4], %i: i32[2]) -> f32[2, 4] {\n  %a = rms_norm %x, @w : f32[2, 4]\n  %b = silu %a : f32[2, 4]\n  \
                    %c = add %b, %x : f32[2, 4]\n  return %c\n}";
        let m = crate::text::parse("m.gir", text).unwrap();
        let svg = svg_func(&m.funcs[0], &|id| card(&m.funcs[0], id));
        assert_eq!(svg.matches("class=\"op\"").count(), 3);
        assert_eq!(svg.matches("edge side").count(), 2, "{svg}");
        assert!(svg.contains("@w f32[4]") && svg.contains("%x: f32[2, 4]") && !svg.contains("%i"), "{svg}");
        assert_eq!(svg, svg_func(&m.funcs[0], &|id| card(&m.funcs[0], id)));
    }
}
