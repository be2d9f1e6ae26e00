use super::*;
use crate::text::parse;

const TEXT: &str = r#"gir 1
sym T in 1..=8
kv full {head_dim = 4, heads = 2, page = 16}
weight @w : bf16[8, 8] = "w"
bucket b {T = 1}
func @id(%x: f32[T, 8]) -> (f32[T, 8]) {
  return %x
}
func @f(%x: f32[T, 8], %kv: kv<full>) -> (f32[T], kv<full>) {
  %y = matmul %x, @w : f32[T, 8]
  %z = call @id %y : f32[T, 8]
  %c = clamp %z {hi = 2.5} : f32[T, 8]
  %s = reduce %c {axis = 1, op = sum} : f32[T]
  return %s, %kv
}
"#;

#[test]
fn dot_has_a_cluster_a_function() {
    let module = parse("t.gir", TEXT).unwrap();
    let text = dot(&module);
    assert_eq!(text.matches("subgraph cluster_").count(), 2);
    assert!(text.contains("label = \"%y = matmul %x, @w\", fillcolor = \"lightskyblue\""), "{text}");
    assert!(text.contains("-> ") && text.contains("[ label = \"f32[T, 8]\"]"), "{text}");
    assert!(dot_func(&module.funcs[1]).contains("label = \"@f\""));
    assert_eq!(text, dot(&parse("other.gir", &module.to_string()).unwrap()));
}

#[test]
fn json_is_complete_and_stable() {
    let module = parse("t.gir", TEXT).unwrap();
    let json = json(&module);
    assert_eq!(json["version"], JSON_VERSION);
    assert_eq!(json["states"][0]["window"], serde_json::Value::Null);
    assert_eq!(json["weights"][0]["type"]["dims"], serde_json::json!([8, 8]));
    let f = &json["funcs"][1];
    assert_eq!(
        f["params"][1],
        serde_json::json!({"name": "%kv", "type": {"text": "kv<full>", "family": "kv", "name": "full"}, "weight": false})
    );
    assert_eq!(f["ops"][0]["operands"], serde_json::json!(["%x", "@w"]));
    assert_eq!(f["ops"][0]["loc"], serde_json::json!({"file": "t.gir", "line": 10, "column": 3}));
    assert_eq!(f["ops"][1]["attrs"], serde_json::json!({"callee": "@id"}));
    assert_eq!(f["ops"][2]["attrs"], serde_json::json!({"hi": 2.5, "lo": "-inf"}));
    assert_eq!(f["ops"][3]["results"][0]["type"]["dims"], serde_json::json!(["T"]));
    assert_eq!(f["results"], serde_json::json!(["%s", "%kv"]));
    let keys: Vec<&String> = json.as_object().unwrap().keys().collect();
    assert_eq!(keys, ["format", "version", "syms", "states", "weights", "buckets", "funcs"]);
}
