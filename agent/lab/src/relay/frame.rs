//! What a TAP hands over: a frame behind a `struct virtio_net_hdr` (linux/virtio_net.h), native byte order.
//!
//! On a fast line the kernel gives up to 64 KiB of one TCP connection at once, headers once in front, and
//! leaves the cutting into segments to the device (TSO): a tenth of the work per byte. To the line such a
//! frame is as many packets as it has segments, so when some of them get lost it is taken apart.

/// The header's length.
pub(super) const HEADER: usize = 10;

const ETHERNET: usize = 14;

/// `gso_type` of TCP over IPv4 and IPv6, and the bit that says that ECN is in use.
const GSO_TCP4: u8 = 1;
const GSO_TCP6: u8 = 4;
const GSO_ECN: u8 = 0x80;

const TCP_FIN: u8 = 0x01;
const TCP_PSH: u8 = 0x08;
const TCP_CWR: u8 = 0x80;

/// Where things are in a frame of several segments; counted without the virtio header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Layout {
    v4: bool,
    tcp: usize,
    payload: usize,
    /// Bytes of payload in each segment but the last.
    size: usize,
}

/// A frame with its virtio header.
#[derive(Clone, Copy)]
pub(super) struct Frame<'a> {
    bytes: &'a [u8],
    layout: Option<Layout>,
}

// === impl Frame ===

impl<'a> Frame<'a> {
    /// `None` for what is too short to be a frame.
    pub(super) fn parse(bytes: &'a [u8]) -> Option<Frame<'a>> {
        (bytes.len() >= HEADER + ETHERNET).then(|| Frame { bytes, layout: layout(bytes) })
    }

    /// How many packets it is on the line.
    pub(super) fn segments(&self) -> usize {
        self.layout.map_or(1, |at| (self.data().len() - at.payload).div_ceil(at.size).max(1))
    }

    /// How many bytes it is on the line: each segment has all headers.
    pub(super) fn line_bytes(&self) -> usize {
        let headers = self.layout.map_or(0, |at| at.payload);
        self.data().len() + (self.segments() - 1) * headers
    }

    pub(super) fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// The segments `from..to` as a frame of their own; all of them if it has only one.
    pub(super) fn part(&self, from: usize, to: usize) -> Vec<u8> {
        let Some(at) = self.layout.filter(|_| from > 0 || to < self.segments()) else {
            return self.bytes.to_vec();
        };
        let data = self.data();
        let payload = data.len() - at.payload;
        let (begin, end) = (from * at.size, (to * at.size).min(payload));
        let mut part = Vec::with_capacity(HEADER + at.payload + end - begin);
        part.extend_from_slice(&self.bytes[..HEADER + at.payload]);
        part.extend_from_slice(&data[at.payload + begin..at.payload + end]);
        if to - from == 1 {
            // No longer to be cut: `gso_type` and `gso_size`.
            part[1] = 0;
            part[4..6].fill(0);
        }
        // A frame is at most 64 KiB, so all lengths in it fit.
        part[2..4].copy_from_slice(&(at.payload as u16).to_ne_bytes());
        let length = part.len() - HEADER;
        let frame = &mut part[HEADER..];
        if at.v4 {
            put(frame, ETHERNET + 2, (length - ETHERNET) as u16);
            let id = get(frame, ETHERNET + 4).wrapping_add(from as u16);
            put(frame, ETHERNET + 4, id);
            put(frame, ETHERNET + 10, 0);
            let sum = !fold(sum(&frame[ETHERNET..at.tcp]));
            put(frame, ETHERNET + 10, sum);
        } else {
            put(frame, ETHERNET + 4, (length - ETHERNET - 40) as u16);
        }
        let number: [u8; 4] = std::array::from_fn(|byte| frame[at.tcp + 4 + byte]);
        let number = u32::from_be_bytes(number).wrapping_add(begin as u32);
        frame[at.tcp + 4..at.tcp + 8].copy_from_slice(&number.to_be_bytes());
        if from > 0 {
            frame[at.tcp + 13] &= !TCP_CWR;
        }
        if to < self.segments() {
            frame[at.tcp + 13] &= !(TCP_FIN | TCP_PSH);
        }
        // So far the checksum covers the pseudo header alone (the device does the rest), and in that the length.
        let (before, after) = ((data.len() - at.tcp) as u16, (length - at.tcp) as u16);
        let check = u32::from(get(frame, at.tcp + 16)) + u32::from(!before) + u32::from(after);
        put(frame, at.tcp + 16, fold(check));
        part
    }

    fn data(&self) -> &'a [u8] {
        &self.bytes[HEADER..]
    }
}

/// `None` for a frame of one segment, and for what cannot be taken apart.
fn layout(bytes: &[u8]) -> Option<Layout> {
    let native = |at: usize| usize::from(u16::from_ne_bytes([bytes[at], bytes[at + 1]]));
    let data = &bytes[HEADER..];
    let v4 = match (bytes[1] & !GSO_ECN, get(data, 12)) {
        (GSO_TCP4, 0x0800) => true,
        (GSO_TCP6, 0x86dd) => false,
        _ => return None,
    };
    // `hdr_len` is only a hint; the checksum begins with the TCP header.
    let (size, tcp) = (native(4), native(6));
    let payload = tcp + usize::from(data.get(tcp + 12)? >> 4) * 4;
    let whole = tcp >= ETHERNET + 20 && payload >= tcp + 20 && payload < data.len() && size > 0;
    whole.then_some(Layout { v4, tcp, payload, size })
}

fn get(frame: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([frame[at], frame[at + 1]])
}

fn put(frame: &mut [u8], at: usize, value: u16) {
    frame[at..at + 2].copy_from_slice(&value.to_be_bytes());
}

/// The sum of RFC 1071 before it is folded; the length is even.
fn sum(bytes: &[u8]) -> u32 {
    bytes.chunks_exact(2).map(|pair| u32::from(get(pair, 0))).sum()
}

fn fold(sum: u32) -> u16 {
    let once = (sum & 0xffff) + (sum >> 16);
    // After a second time no carry is left.
    ((once & 0xffff) + (once >> 16)) as u16
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A frame of five segments of 100 bytes and one of 50, as the kernel would hand it over.
    fn frame(v4: bool) -> Vec<u8> {
        let mut ip = if v4 { vec![0x45; 20] } else { vec![0x60; 40] };
        let tcp = ETHERNET + ip.len();
        let length = (20 + 550) as u16;
        if v4 {
            ip[2..4].copy_from_slice(&(20 + length).to_be_bytes());
            ip[4..6].copy_from_slice(&0xfffe_u16.to_be_bytes());
        } else {
            ip[4..6].copy_from_slice(&length.to_be_bytes());
        }
        let mut bytes = vec![1, if v4 { GSO_TCP4 } else { GSO_TCP6 }, 0, 0];
        for field in [100, tcp as u16, 16] {
            bytes.extend(field.to_ne_bytes());
        }
        bytes.extend([2; 12]);
        bytes.extend(if v4 { [0x08, 0x00] } else { [0x86, 0xdd] });
        bytes.extend(&ip);
        let mut header = [0; 20];
        header[4..8].copy_from_slice(&0xffff_ffd0_u32.to_be_bytes());
        header[12] = 5 << 4;
        header[13] = TCP_FIN | TCP_PSH | TCP_CWR | 0x10;
        header[16..18].copy_from_slice(&pseudo(&ip, length).to_be_bytes());
        bytes.extend(header);
        bytes.extend((0..550).map(|n| n as u8));
        bytes
    }

    /// The folded sum of the pseudo header.
    fn pseudo(ip: &[u8], length: u16) -> u16 {
        let addresses = if ip.len() == 20 { &ip[12..20] } else { &ip[8..40] };
        fold(sum(addresses) + 6 + u32::from(length))
    }

    #[test]
    fn a_frame_counts_as_its_segments() {
        let bytes = frame(true);
        let frame = Frame::parse(&bytes).unwrap();
        assert_eq!(frame.segments(), 6);
        assert_eq!(frame.line_bytes(), 550 + 6 * 54);
        let mut single = bytes[..HEADER + 60].to_vec();
        single[1] = 0;
        let single = Frame::parse(&single).unwrap();
        assert_eq!((single.segments(), single.line_bytes()), (1, 60));
        assert!(Frame::parse(&bytes[..20]).is_none());
    }

    #[test]
    fn parts_are_frames_with_right_numbers_and_sums() {
        for v4 in [true, false] {
            let bytes = frame(v4);
            let whole = Frame::parse(&bytes).unwrap();
            let at = whole.layout.unwrap();
            assert_eq!(whole.part(0, 6), bytes);
            let mut payload = Vec::new();
            for (from, to, flags) in
                [(0, 2, 0x10 | TCP_CWR), (2, 3, 0x10), (3, 5, 0x10), (5, 6, 0x10 | TCP_FIN | TCP_PSH)]
            {
                let part = whole.part(from, to);
                let data = &part[HEADER..];
                let length = (data.len() - at.tcp) as u16;
                assert_eq!(Frame::parse(&part).unwrap().segments(), to - from);
                if v4 {
                    assert_eq!(get(data, 16), length + 20);
                    assert_eq!(get(data, 18), 0xfffe_u16.wrapping_add(from as u16));
                    assert_eq!(fold(sum(&data[ETHERNET..at.tcp])), 0xffff);
                } else {
                    assert_eq!(get(data, 18), length);
                }
                assert_eq!(get(data, at.tcp + 16), pseudo(&data[ETHERNET..at.tcp], length));
                let number = 0xffff_ffd0_u32.wrapping_add(from as u32 * 100);
                assert_eq!(data[at.tcp + 4..at.tcp + 8], number.to_be_bytes());
                assert_eq!(data[at.tcp + 13], flags);
                payload.extend_from_slice(&data[at.payload..]);
            }
            assert_eq!(payload, bytes[HEADER + at.payload..]);
        }
    }

    #[test]
    fn odd_headers_do_not_panic() {
        let good = frame(true);
        for at in 0..HEADER + 60 {
            for value in [0, 1, 0x7f, 0xff] {
                let mut bytes = good.clone();
                bytes[at] = value;
                let frame = Frame::parse(&bytes).unwrap();
                let segments = frame.segments();
                frame.part(segments / 2, segments);
                assert!(frame.line_bytes() >= 550);
            }
        }
    }
}
