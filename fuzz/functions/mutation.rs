//! What a fuzzer's bytes do to a valid input: few random bytes reach deep, while purely random ones are refused at
//! once.

/// One edit for each four bytes of `edits`: what, where (two bytes), and a value.
pub(crate) fn mutate(mut valid: Vec<u8>, edits: &[u8]) -> Vec<u8> {
    for edit in edits.chunks_exact(4) {
        let [what, high, low, value] = [edit[0], edit[1], edit[2], edit[3]];
        let at = usize::from(u16::from_be_bytes([high, low])) % (valid.len() + 1);
        let end = (at + usize::from(value)).min(valid.len());
        match what % 6 {
            0 if at < valid.len() => valid[at] = value,
            1 if at < valid.len() => valid[at] ^= 1 << (value % 8),
            2 => valid.insert(at, value),
            3 => drop(valid.drain(at..end)),
            4 => valid.truncate(at),
            5 => {
                let again = valid[at..end].to_vec();
                valid.splice(at..at, again);
            }
            _ => (),
        }
    }
    valid
}
