//! Machine descriptions: the cost model's view of each GPU, as text. What the fields mean stands in the files; whoever costs kernels parses them.

/// Every description: name and text, the default first.
pub const MACHINES: &[(&str, &str)] = &[
    ("sm90-h100", include_str!("../machines/sm90-h100.toml")),
    ("sm90-h200", include_str!("../machines/sm90-h200.toml")),
];

/// The text of the description `name`.
pub fn machine(name: &str) -> Option<&'static str> {
    MACHINES.iter().find(|(n, _)| *n == name).map(|(_, text)| *text)
}

/// The description for a device as the driver names it: `NVIDIA H200` gives `sm90-h200`; the default for any other.
pub fn for_device(device: &str) -> &'static str {
    match device.contains("H200") {
        true => "sm90-h200",
        false => "sm90-h100",
    }
}
