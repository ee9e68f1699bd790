//! TYPE A: lines end with CR LF on the wire and with LF in files (RFC 959, 3.1.1.1). Nothing else changes.

/// Adds a CR before each LF that has none.
#[derive(Debug, Default)]
pub(crate) struct ToWire {
    after_cr: bool,
}

/// Takes the CR before each LF away.
#[derive(Debug, Default)]
pub(crate) struct FromWire {
    after_cr: bool,
}

impl ToWire {
    pub(crate) fn convert(&mut self, bytes: &[u8], out: &mut Vec<u8>) {
        for &byte in bytes {
            if byte == b'\n' && !self.after_cr {
                out.push(b'\r');
            }
            out.push(byte);
            self.after_cr = byte == b'\r';
        }
    }
}

impl FromWire {
    pub(crate) fn convert(&mut self, bytes: &[u8], out: &mut Vec<u8>) {
        for &byte in bytes {
            if self.after_cr && byte != b'\n' {
                out.push(b'\r');
            }
            self.after_cr = byte == b'\r';
            if !self.after_cr {
                out.push(byte);
            }
        }
    }

    /// A CR at the very end is kept.
    pub(crate) fn end(&mut self, out: &mut Vec<u8>) {
        if std::mem::take(&mut self.after_cr) {
            out.push(b'\r');
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn however_it_is_cut_a_text_comes_back_as_it_was() {
        let text = b"a\nb\r\nc\rd\n\n\r";
        for cut in 0..text.len() {
            let (mut wire, mut back) = (Vec::new(), Vec::new());
            let mut to = ToWire::default();
            to.convert(&text[..cut], &mut wire);
            to.convert(&text[cut..], &mut wire);
            assert_eq!(wire, b"a\r\nb\r\nc\rd\r\n\r\n\r");
            let mut from = FromWire::default();
            from.convert(&wire[..cut], &mut back);
            from.convert(&wire[cut..], &mut back);
            from.end(&mut back);
            assert_eq!(back, b"a\nb\nc\rd\n\n\r");
        }
    }
}
