//! Pictures for Graphviz: one cluster a function, one node an op coloured by class, one edge a use labelled with the type.

use petgraph::dot::{Config, Dot};
use petgraph::graph::{DiGraph, NodeIndex};
use petgraph::visit::NodeFiltered;

use crate::module::{Func, Module};
use crate::op::Class;
use crate::text::{Names, op_line, order};

/// A picture of the whole module.
pub fn dot(module: &Module) -> String {
    draw(module.funcs.iter())
}

/// A picture of one function.
pub fn dot_func(func: &Func) -> String {
    draw(std::iter::once(func))
}

struct Node {
    cluster: usize,
    label: String,
    colour: &'static str,
}

fn draw<'a>(funcs: impl Iterator<Item = &'a Func>) -> String {
    // One graph for all functions, in print order: node numbers are then unique and do not depend on `OpId`s.
    let mut graph: DiGraph<Node, String> = DiGraph::new();
    let mut titles = Vec::new();
    for (cluster, func) in funcs.enumerate() {
        titles.push(format!("@{}", func.name));
        add(&mut graph, cluster, func);
    }
    let config = [Config::NodeNoLabel, Config::EdgeNoLabel, Config::GraphContentOnly];
    let mut out =
        String::from("digraph gir {\n  rankdir = TB\n  node [shape = box, style = filled, fontname = monospace]\n");
    for (cluster, title) in titles.iter().enumerate() {
        let part = NodeFiltered::from_fn(&graph, |n: NodeIndex| graph[n].cluster == cluster);
        let node = |_, (_, node): (NodeIndex, &Node)| {
            format!("label = {}, fillcolor = \"{}\"", string(&node.label), node.colour)
        };
        let body = Dot::with_attr_getters(&part, &config, &|_, e| format!("label = {}", string(e.weight())), &node);
        let shown = body_text(&body);
        out.push_str(&format!("  subgraph cluster_{cluster} {{\n    label = {}\n{shown}  }}\n", string(title)));
    }
    out.push_str("}\n");
    out
}

fn add(graph: &mut DiGraph<Node, String>, cluster: usize, func: &Func) {
    let order = order(func);
    let names = Names::new(func, &order);
    let mut nodes = std::collections::BTreeMap::new();
    for id in &order {
        let class = func.graph.op(*id).kind.class();
        let line = op_line(func, &names, *id);
        // Types are on the edges, so the label stops before them; leaves have nothing else to show.
        let label = match class {
            Class::Leaf => line,
            _ => line.split(" : ").next().unwrap_or_default().to_string(),
        };
        nodes.insert(*id, graph.add_node(Node { cluster, label, colour: colour(class) }));
    }
    let ty = |v: crate::Value| {
        let ty = func.graph.get(v.op).and_then(|op| op.results.get(v.result as usize));
        ty.map_or("?".to_string(), |t| t.to_string())
    };
    for id in &order {
        for v in &func.graph.op(*id).operands {
            if let (Some(from), Some(to)) = (nodes.get(&v.op), nodes.get(id)) {
                graph.add_edge(*from, *to, ty(*v));
            }
        }
    }
    let end = graph.add_node(Node { cluster, label: "return".into(), colour: "white" });
    for v in &func.results {
        if let Some(from) = nodes.get(&v.op) {
            graph.add_edge(*from, end, ty(*v));
        }
    }
}

fn colour(class: Class) -> &'static str {
    match class {
        Class::Leaf => "gray90",
        Class::View => "white",
        Class::Elementwise => "palegreen",
        Class::Reduction => "khaki",
        Class::Contraction => "lightskyblue",
        Class::Quant => "plum",
        Class::Indexing => "navajowhite",
        Class::Composite => "lightcyan",
        Class::State => "lightsalmon",
        Class::Kernel => "lightskyblue",
        Class::Sampling => "pink",
        Class::Call => "lightgoldenrod",
    }
}

/// A quoted DOT string.
fn string(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n"))
}

/// petgraph indents by four; labels are ours, so `Display` of the weights is never asked for.
fn body_text<G>(dot: &Dot<'_, G>) -> String
where
    G: petgraph::visit::IntoEdgeReferences
        + petgraph::visit::IntoNodeReferences
        + petgraph::visit::NodeIndexable
        + petgraph::visit::GraphProp,
{
    struct Body<'b, 'a, G: petgraph::visit::IntoEdgeReferences + petgraph::visit::IntoNodeReferences>(&'b Dot<'a, G>);
    impl<G> std::fmt::Display for Body<'_, '_, G>
    where
        G: petgraph::visit::IntoEdgeReferences
            + petgraph::visit::IntoNodeReferences
            + petgraph::visit::NodeIndexable
            + petgraph::visit::GraphProp,
    {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            self.0.graph_fmt(f, |_, _| Ok(()), |_, _| Ok(()))
        }
    }
    Body(dot).to_string()
}
