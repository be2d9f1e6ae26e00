//! Bodies of kernels while rules work on them: regions whose references name operands by class.
//!
//! [`open`] takes a kernel node apart, the methods move ops in, [`Body::close`] puts parameters in the order of their first use and checks the template, so that two orders
//! of fusion that give the same kernel give the same node.

use std::collections::BTreeMap;
use std::sync::Arc;

use egg::Id;
use gossamer_ir::kernel::{REGIONS, Stage};
use gossamer_ir::op::{InferCx, infer};
use gossamer_ir::template::template;
use gossamer_ir::{Attrs, Func, Kernel, OpKind, Param, Type, Value};

use super::facts::{Graph, attrs_of, parts, ty};
use super::term::Term;

/// What an op in a region reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Ref {
    /// A yield of the region before.
    Carried(usize),
    /// An operand of the kernel.
    Operand(Id),
    /// Result of an op of the region.
    Op(usize, u16),
}

/// An op in a region.
#[derive(Clone, Debug)]
struct Node {
    kind: OpKind,
    attrs: Attrs,
    args: Vec<Ref>,
    results: Vec<Type>,
    names: Vec<Arc<str>>,
}

/// A region.
#[derive(Clone, Debug, Default)]
pub struct Region {
    nodes: Vec<Node>,
    /// What it yields.
    pub results: Vec<Ref>,
}

/// A kernel taken apart.
#[derive(Clone, Debug)]
pub struct Body {
    /// Its template.
    pub template: Arc<str>,
    /// Prologue, main, epilogue, stage by stage.
    pub regions: Vec<Option<Region>>,
}

/// An op that a kernel takes in.
#[derive(Clone, Debug)]
pub struct Taken<'a> {
    /// Which op.
    pub kind: OpKind,
    /// Its attributes.
    pub attrs: Attrs,
    /// Its operands.
    pub operands: &'a [Id],
    /// A name for what it makes.
    pub name: Arc<str>,
}

/// Where an argument of a new op comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arg {
    /// A result of the kernel.
    Result(usize),
    /// Any value.
    Value(Id),
}

/// What became of results when an op was taken in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Moved {
    /// New number of each old result; `None` if it is no longer there.
    pub old: Vec<Option<u16>>,
    /// Number of the op's first result.
    pub first: u16,
}

/// Takes a kernel node apart.
pub fn open(eg: &Graph, kernel: u32, operands: &[Id]) -> Body {
    let kernel = eg.analysis.kernels[kernel as usize].clone();
    let mut rest = operands.iter().copied();
    let mut regions = vec![None; 3 * kernel.depth()];
    for (r, func) in kernel.numbered() {
        let own = kernel.operands_of(r);
        let carried = func.params.len() - own;
        let params: Vec<Ref> =
            (0..carried).map(Ref::Carried).chain(rest.by_ref().take(own).map(|id| Ref::Operand(eg.find(id)))).collect();
        regions[r] = Some(region(func, &params));
    }
    Body { template: kernel.template().clone(), regions }
}

fn region(f: &Func, params: &[Ref]) -> Region {
    let mut map: BTreeMap<Value, Ref> = BTreeMap::new();
    let mut out = Region::default();
    for id in f.graph.order().unwrap_or_default() {
        let op = f.graph.op(id);
        if op.kind == OpKind::Param {
            if let Some(p) = params.get(op.attrs.int("index") as usize) {
                map.insert(Value { op: id, result: 0 }, *p);
            }
            continue;
        }
        for r in 0..op.results.len() as u16 {
            map.insert(Value { op: id, result: r }, Ref::Op(out.nodes.len(), r));
        }
        out.nodes.push(Node {
            kind: op.kind,
            attrs: op.attrs.clone(),
            args: op.operands.iter().map(|v| map[v]).collect(),
            results: op.results.clone(),
            names: op.names.clone(),
        });
    }
    out.results = f.results.iter().map(|v| map[v]).collect();
    out
}

impl Body {
    /// A kernel of one op. Constants among the operands become part of it.
    pub fn seed(
        eg: &Graph,
        template: &str,
        kind: OpKind,
        attrs: Attrs,
        operands: &[Id],
        name: Arc<str>,
    ) -> Option<Body> {
        let mut body = Body { template: template.into(), regions: vec![None, Some(Region::default()), None] };
        let args: Vec<Arg> = operands.iter().map(|id| Arg::Value(*id)).collect();
        let at = body.push(eg, 1, kind, attrs, &args, name)?;
        let main = body.regions[1].as_mut()?;
        main.results = (0..main.nodes[at].results.len() as u16).map(|r| Ref::Op(at, r)).collect();
        Some(body)
    }

    /// The last region: where results are made and ops are taken in. A template with a main op gets an epilogue. Kernels of several stages take nothing in: each
    /// stage has grown before [`Body::chain`].
    fn last(&mut self) -> usize {
        let free = template(&self.template).is_some_and(|t| t.main.is_empty());
        if free || self.regions[2].is_some() {
            return if free { 1 } else { 2 };
        }
        let yields = self.regions[1].as_ref().map_or(0, |m| m.results.len());
        self.regions[2] = Some(Region { nodes: vec![], results: (0..yields).map(Ref::Carried).collect() });
        2
    }

    /// Number of results.
    pub fn results(&self) -> usize {
        self.regions.iter().flatten().next_back().map_or(0, |r| r.results.len())
    }

    /// This kernel and then `next`, which reads result `result` of this one as its operand `operand`: a kernel of template `template`. `None` if the last of
    /// this one's stages makes no such result, or `next` reads it elsewhere than in the main region of its first stage.
    pub fn chain(mut self, result: usize, mut next: Body, operand: Id, template: &str) -> Option<Body> {
        let last = self.regions.iter_mut().flatten().next_back()?;
        last.results = vec![*last.results.get(result)?];
        let read = |r: &Option<Region>| r.as_ref().is_some_and(|r| r.operands().contains(&operand));
        if next.regions.iter().enumerate().any(|(i, r)| read(r) != (i == 1)) {
            return None;
        }
        // A prologue stands between the two: what comes in passes through it.
        let from = match next.regions[0].as_mut() {
            Some(prologue) => {
                prologue.results.push(Ref::Carried(0));
                prologue.results.len() - 1
            }
            None => 0,
        };
        next.regions[1].as_mut()?.replace(Ref::Operand(operand), Ref::Carried(from), None);
        self.regions.append(&mut next.regions);
        self.template = template.into();
        Some(self)
    }

    /// Takes in an op that reads results. Results it reads disappear unless `keep`; the op's results stand where the first of them was, or at the end.
    pub fn grow(
        &mut self,
        eg: &Graph,
        kind: OpKind,
        attrs: Attrs,
        args: &[Arg],
        keep: bool,
        name: Arc<str>,
    ) -> Option<Moved> {
        let r = self.last();
        let before = self.regions[r].as_ref()?.results.clone();
        let at = self.push(eg, r, kind, attrs, args, name)?;
        let region = self.regions[r].as_mut()?;
        let made: Vec<Ref> = (0..region.nodes[at].results.len() as u16).map(|i| Ref::Op(at, i)).collect();
        let read: Vec<usize> =
            args.iter().filter_map(|a| if let Arg::Result(i) = a { Some(*i) } else { None }).collect();
        let position = if keep { before.len() } else { read.iter().copied().min()? };
        let mut old = vec![None; before.len()];
        let mut results = Vec::new();
        let mut first = 0;
        for i in 0..=before.len() {
            if i == position {
                first = results.len() as u16;
                results.extend(made.iter().copied());
            }
            if i < before.len() && (keep || !read.contains(&i)) {
                old[i] = Some(results.len() as u16);
                results.push(before[i]);
            }
        }
        region.results = results;
        Some(Moved { old, first })
    }

    /// Puts an op between operand `operand` and what reads it in `region`. In the main region it goes to the prologue; with `export` its value also becomes the last
    /// result.
    pub fn absorb(&mut self, eg: &Graph, region: usize, operand: Id, op: Taken, export: bool) -> Option<()> {
        let Taken { kind, attrs, operands, name } = op;
        let args: Vec<Arg> = operands.iter().map(|id| Arg::Value(*id)).collect();
        let free = template(&self.template).is_some_and(|t| t.main.is_empty());
        if region != 1 || free {
            let at = self.push(eg, region, kind, attrs, &args, name)?;
            let r = self.regions[region].as_mut()?;
            r.replace(Ref::Operand(operand), Ref::Op(at, 0), Some(at));
            r.sort();
            return Some(());
        }
        if self.regions[0].is_none() {
            self.regions[0] = Some(Region::default());
        }
        let at = self.push(eg, 0, kind, attrs, &args, name)?;
        let prologue = self.regions[0].as_mut()?;
        let carried = prologue.results.len();
        prologue.results.push(Ref::Op(at, 0));
        let main = self.regions[1].as_mut()?;
        main.replace(Ref::Operand(operand), Ref::Carried(carried), None);
        if export {
            let yields = main.results.len();
            main.results.push(Ref::Carried(carried));
            match self.regions[2].as_mut() {
                Some(epilogue) => epilogue.results.push(Ref::Carried(yields)),
                None => {
                    let _ = self.last();
                }
            }
        }
        Some(())
    }

    /// Classes that `region` reads as operands, in order of first use.
    pub fn operands(&self, region: usize) -> Vec<Id> {
        self.regions[region].as_ref().map_or(vec![], Region::operands)
    }

    /// True if an op of this kind is in `region`.
    pub fn has(&self, region: usize, kind: OpKind) -> bool {
        self.regions[region].as_ref().is_some_and(|r| r.nodes.iter().any(|n| n.kind == kind))
    }

    fn push(
        &mut self,
        eg: &Graph,
        region: usize,
        kind: OpKind,
        attrs: Attrs,
        args: &[Arg],
        name: Arc<str>,
    ) -> Option<usize> {
        let mut refs = Vec::with_capacity(args.len());
        for arg in args {
            refs.push(match arg {
                Arg::Result(i) => *self.regions[region].as_ref()?.results.get(*i)?,
                Arg::Value(id) => match constant(eg, *id) {
                    Some(attrs) => Ref::Op(self.push(eg, region, OpKind::Const, attrs, &[], "c".into())?, 0),
                    None => Ref::Operand(eg.find(*id)),
                },
            });
        }
        let types = refs.iter().map(|r| self.ty(eg, region, *r)).collect::<Option<Vec<_>>>()?;
        let results = infer(kind, &InferCx { operands: &types, attrs: &attrs, module: &eg.analysis.module }).ok()?;
        let names = vec![name; results.len()];
        let nodes = &mut self.regions[region].as_mut()?.nodes;
        nodes.push(Node { kind, attrs, args: refs, results, names });
        Some(nodes.len() - 1)
    }

    fn ty(&self, eg: &Graph, region: usize, r: Ref) -> Option<Type> {
        match r {
            Ref::Operand(id) => ty(eg, id).cloned(),
            Ref::Op(n, i) => self.regions[region].as_ref()?.nodes.get(n)?.results.get(i as usize).cloned(),
            Ref::Carried(i) => {
                let before = (0..region).rev().find(|b| self.regions[*b].is_some())?;
                let r = *self.regions[before].as_ref()?.results.get(i)?;
                self.ty(eg, before, r)
            }
        }
    }

    /// The name of what a reference stands for.
    fn name(&self, eg: &Graph, region: usize, r: Ref) -> Arc<str> {
        let made = match r {
            Ref::Operand(id) => eg[id].data.name.clone(),
            Ref::Op(n, i) => {
                let region = self.regions[region].as_ref();
                region.and_then(|r| r.nodes.get(n)).and_then(|n| n.names.get(i as usize)).cloned()
            }
            Ref::Carried(i) => {
                let before = (0..region).rev().find(|b| self.regions[*b].is_some());
                return match before.and_then(|b| Some((b, *self.regions[b].as_ref()?.results.get(i)?))) {
                    Some((b, r)) => self.name(eg, b, r),
                    None => "v".into(),
                };
            }
        };
        made.unwrap_or_else(|| "v".into())
    }

    /// The kernel and its operands, if its template takes it at some sizes.
    ///
    /// # Errors
    /// What the template says.
    pub fn close(&self, eg: &Graph) -> Result<(Kernel, Vec<Id>), String> {
        let t = template(&self.template).ok_or_else(|| format!("there is no template `{}`", self.template))?;
        let mut operands = Vec::new();
        let mut funcs = vec![None; self.regions.len()];
        let mut used: Option<Vec<usize>> = None;
        // From the last region back, so that what no later region reads is not yielded.
        let mut regions = self.regions.clone();
        for r in (0..regions.len()).rev() {
            let Some(region) = regions[r].as_mut() else { continue };
            if let Some(used) = &used {
                region.results = used.iter().map(|i| region.results[*i]).collect();
            }
            let carried = region.carried();
            // Renumber what is carried in from before.
            let renumber: BTreeMap<usize, usize> = carried.iter().enumerate().map(|(new, old)| (*old, new)).collect();
            region.map(|x| if let Ref::Carried(i) = x { Ref::Carried(renumber[&i]) } else { x });
            used = Some(carried);
        }
        for r in 0..regions.len() {
            if let Some(region) = &regions[r] {
                let before = (0..r).rev().find(|b| regions[*b].is_some());
                let carried: Vec<(Arc<str>, Type)> = match before {
                    Some(b) => {
                        let body = Body { template: self.template.clone(), regions: regions.clone() };
                        let results = regions[b].as_ref().map_or(vec![], |x| x.results.clone());
                        results.iter().filter_map(|x| Some((body.name(eg, b, *x), body.ty(eg, b, *x)?))).collect()
                    }
                    None => vec![],
                };
                let (func, ids) = region.func(eg, REGIONS[r % 3], &carried);
                operands.extend(ids);
                funcs[r] = Some(func);
            }
        }
        // Regions that only pass values on are left out.
        let mut stages = Vec::new();
        for stage in funcs.chunks_mut(3) {
            let [prologue, main, epilogue] = stage else { return Err("a stage without its regions".into()) };
            let prologue = prologue.take().filter(|f| !f.results.is_empty());
            let main = main.take().ok_or("no main region")?;
            let epilogue = epilogue.take().filter(|f| f.graph.len() > f.params.len() || !passes_on(f));
            stages.push(Stage { prologue, main, epilogue });
        }
        let mut stages = stages.into_iter();
        let first = stages.next().ok_or("no main region")?;
        let kernel = Kernel::of(&self.template, first, stages.collect());
        t.check(&kernel)?;
        t.check_shared(&kernel, &|a, b| operands.get(a) == operands.get(b))?;
        Ok((kernel, operands))
    }
}

/// True if the region yields its parameters in order.
fn passes_on(f: &Func) -> bool {
    f.results.len() == f.params.len() && (0..f.params.len()).all(|i| f.param(i) == Some(f.results[i]))
}

/// Attributes of the constant that a class is, if it is a scalar one.
fn constant(eg: &Graph, id: Id) -> Option<Attrs> {
    eg[id].nodes.iter().find_map(|n| match n {
        Term::Op(OpKind::Const, children) => {
            let (_, attrs) = parts(eg, OpKind::Const, children);
            attrs.dims("dims").is_empty().then_some(attrs)
        }
        _ => None,
    })
}

/// Attributes of a class, for rules that name them.
pub fn attributes(eg: &Graph, id: Id) -> Attrs {
    attrs_of(eg, id).unwrap_or_default()
}

impl Region {
    fn map(&mut self, f: impl Fn(Ref) -> Ref) {
        self.nodes.iter_mut().flat_map(|n| n.args.iter_mut()).chain(self.results.iter_mut()).for_each(|r| *r = f(*r));
    }

    fn replace(&mut self, from: Ref, to: Ref, except: Option<usize>) {
        for (i, node) in self.nodes.iter_mut().enumerate() {
            if Some(i) != except {
                node.args.iter_mut().filter(|r| **r == from).for_each(|r| *r = to);
            }
        }
        self.results.iter_mut().filter(|r| **r == from).for_each(|r| *r = to);
    }

    /// Values in order of first use from the results.
    fn visit(&self, mut seen: impl FnMut(Ref)) {
        let mut done = vec![false; self.nodes.len()];
        let mut stack: Vec<(Ref, usize)> = Vec::new();
        for root in &self.results {
            stack.push((*root, 0));
            while let Some((r, next)) = stack.pop() {
                match r {
                    Ref::Op(n, _) if !done[n] => match self.nodes[n].args.get(next) {
                        Some(arg) => {
                            stack.push((r, next + 1));
                            stack.push((*arg, 0));
                        }
                        None => done[n] = true,
                    },
                    Ref::Op(..) => {}
                    leaf => seen(leaf),
                }
            }
        }
    }

    fn operands(&self) -> Vec<Id> {
        let mut out = Vec::new();
        self.visit(|r| {
            if let Ref::Operand(id) = r
                && !out.contains(&id)
            {
                out.push(id);
            }
        });
        out
    }

    fn carried(&self) -> Vec<usize> {
        let mut out = Vec::new();
        self.visit(|r| {
            if let Ref::Carried(i) = r
                && !out.contains(&i)
            {
                out.push(i);
            }
        });
        out
    }

    /// Puts nodes behind the nodes they read.
    fn sort(&mut self) {
        let n = self.nodes.len();
        let mut order: Vec<usize> = Vec::with_capacity(n);
        let mut done = vec![false; n];
        while order.len() < n {
            let before = order.len();
            for i in 0..n {
                let ready = self.nodes[i].args.iter().all(|a| if let Ref::Op(d, _) = a { done[*d] } else { true });
                if !done[i] && ready {
                    done[i] = true;
                    order.push(i);
                }
            }
            if order.len() == before {
                return;
            }
        }
        let new: BTreeMap<usize, usize> = order.iter().enumerate().map(|(new, old)| (*old, new)).collect();
        let nodes = order.iter().map(|i| self.nodes[*i].clone()).collect();
        self.nodes = nodes;
        self.map(|r| if let Ref::Op(i, k) = r { Ref::Op(new[&i], k) } else { r });
    }

    /// As a function: carried values first, then operands in order of first use.
    fn func(&self, eg: &Graph, name: &str, carried: &[(Arc<str>, Type)]) -> (Func, Vec<Id>) {
        let ids = self.operands();
        let param = |(name, ty): &(Arc<str>, Type)| Param { name: name.clone(), ty: ty.clone(), weight: false };
        let mut params: Vec<Param> = carried.iter().map(param).collect();
        for id in &ids {
            let name = eg[*id].data.name.clone().unwrap_or_else(|| "v".into());
            if let Some(t) = ty(eg, *id) {
                params.push(Param { name, ty: t.clone(), weight: false });
            }
        }
        let mut func = Func::new(name, params);
        let values: Vec<Option<Value>> = (0..func.params.len()).map(|i| func.param(i)).collect();
        let mut made: Vec<Option<Vec<Value>>> = vec![None; self.nodes.len()];
        let get = |r: Ref, made: &[Option<Vec<Value>>]| match r {
            Ref::Carried(i) => values.get(i).copied().flatten(),
            Ref::Operand(id) => values.get(carried.len() + ids.iter().position(|x| *x == id)?).copied().flatten(),
            Ref::Op(n, i) => made.get(n)?.as_ref()?.get(i as usize).copied(),
        };
        for (n, node) in self.nodes.iter().enumerate() {
            let args: Option<Vec<Value>> = node.args.iter().map(|r| get(*r, &made)).collect();
            // An op that nothing reads may refer to what is not there.
            let Some(args) = args else { continue };
            let op = func.graph.add(gossamer_ir::Op {
                kind: node.kind,
                attrs: node.attrs.clone(),
                operands: args,
                results: node.results.clone(),
                names: node.names.clone(),
                seq: 0,
                loc: None,
            });
            made[n] = Some((0..node.results.len() as u16).map(|result| Value { op, result }).collect());
        }
        func.results = self.results.iter().filter_map(|r| get(*r, &made)).collect();
        (func, ids)
    }
}
