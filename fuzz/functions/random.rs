//! Random inputs for a function, as many as it takes: what cargo-fuzz does for longer, in a test.

use proptest::prelude::ProptestConfig;
use proptest::strategy::Strategy;
use proptest::test_runner::TestRunner;

pub(crate) fn try_all(cases: u32, inputs: impl Strategy<Value = Vec<u8>>, function: fn(&[u8])) {
    // What fails is printed, to be kept as a test; files of seeds say nothing to their reader.
    let config = ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() };
    let done = TestRunner::new(config).run(&inputs, |input| {
        function(&input);
        Ok(())
    });
    if let Err(error) = done {
        panic!("{error}");
    }
}

/// The first byte chooses what the function does with the rest.
pub(crate) fn after(first: u8, rest: impl Strategy<Value = Vec<u8>>) -> impl Strategy<Value = Vec<u8>> {
    rest.prop_map(move |mut bytes| {
        bytes.insert(0, first);
        bytes
    })
}
