#[test]
fn dump() {
    let Ok(dir) = std::env::var("DUMP_TO") else { return };
    for case in super::fused::full_size() {
        for l in case.lower().unwrap().launches {
            std::fs::write(format!("{dir}/{}.cu", l.kernel.entry), &l.kernel.text).unwrap();
            let args: Vec<String> = l.args.iter().map(|a| format!("{a:?}")).collect();
            let meta = format!("{}\n{}\n{} {} {} {}\n{}\n", case.name, l.kernel.entry, l.grid[0], l.block, l.shared, l.dependent, args.join("\n"));
            std::fs::write(format!("{dir}/{}.meta", l.kernel.entry), meta).unwrap();
        }
    }
}
