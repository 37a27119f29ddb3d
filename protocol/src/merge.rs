pub fn weights_fit(a: u64, b: u64) -> bool {
    a.checked_mul(b).is_some_and(|p| p < 1 << 31)
}
