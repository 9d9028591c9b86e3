//! Where this kernel keeps what the datapath asks about TCP sockets, from its type information (BTF, see
//! Documentation/bpf/btf.rst of the kernel).

use std::{fs, sync::OnceLock};

use aya::Pod;
use prestack_abi::socket::SocketFields;

/// The kernel's types.
const KERNEL_TYPES: &str = "/sys/kernel/btf/vmlinux";

/// BTF: magic number, and kinds of types.
const MAGIC: u16 = 0xeb9f;
const KIND_INT: u32 = 1;
const KIND_ARRAY: u32 = 3;
const KIND_STRUCT: u32 = 4;
const KIND_UNION: u32 = 5;
const KIND_ENUM: u32 = 6;
const KIND_FUNC_PROTO: u32 = 13;
const KIND_VAR: u32 = 14;
const KIND_DATASEC: u32 = 15;
const KIND_DECL_TAG: u32 = 17;
const KIND_ENUM64: u32 = 19;

/// The value of the constant of that name in the BPF object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(transparent)]
pub struct Fields(SocketFields);

// SAFETY: made of integers.
unsafe impl Pod for Fields {}

impl Fields {
    /// Those of a kernel that does not say.
    pub const UNKNOWN: Self = Self(SocketFields::UNKNOWN);

    /// Why nothing is answered over TCP on a kernel with these; `None` if they are known.
    #[must_use]
    pub fn why_unanswered(&self) -> Option<&'static str> {
        (*self == Self::UNKNOWN).then_some(
            "nothing is answered over TCP: this kernel does not say where it keeps what --tcp-hits asks about \
             connections (/sys/kernel/btf/vmlinux; CONFIG_DEBUG_INFO_BTF)",
        )
    }

    /// The same for test runs, in which replies leave without anybody who writes them: there every reply counts as
    /// being written, as a field that is hardly ever 0 stands for the one that says it.
    #[must_use]
    pub fn of_test_runs(&self) -> Self {
        Self(SocketFields {
            owned: self.0.rcv_nxt,
            ..self.0
        })
    }
}

/// The offsets on this kernel; zeros if it does not say.
#[must_use]
pub fn of_this_kernel() -> &'static Fields {
    static FIELDS: OnceLock<Fields> = OnceLock::new();
    FIELDS.get_or_init(|| {
        let types = fs::read(KERNEL_TYPES).unwrap_or_default();
        Fields(read(&types).unwrap_or_default())
    })
}

/// The offsets by the types in `btf`.
fn read(btf: &[u8]) -> Option<SocketFields> {
    let types = Types::parse(btf)?;
    let connection = types.structure("tcp_sock")?;
    let request = types.structure("tcp_request_sock")?;
    let options = types.structure("tcp_options_received")?;
    let socket = types.structure("sock")?;
    let lock = types.nameless_structure(&["slock", "owned"])?;
    let options_bit = 8 * types.offset(connection, "rx_opt")?;
    let option_bit = |name| Some(options_bit + types.bit_offset(options, name)?);
    // These are there if the kernel was built with them.
    let optional = |name| types.offset(connection, name).unwrap_or_default();
    Some(SocketFields {
        rcv_nxt: types.offset(connection, "rcv_nxt")?,
        copied_seq: types.offset(connection, "copied_seq")?,
        owned: types.offset(socket, "sk_lock")? + types.offset(lock, "owned")?,
        // A bit field on older kernels, a byte on newer ones.
        chrono_bit: types.place(connection, "chrono_type")?.0,
        snd_nxt: types.offset(connection, "snd_nxt")?,
        bytes_received: types.offset(connection, "bytes_received")?,
        bytes_sent: types.offset(connection, "bytes_sent")?,
        out_of_order_queue: types.offset(connection, "out_of_order_queue")?,
        request_rcv_nxt: types.offset(request, "rcv_nxt")?,
        request_snt_isn: types.offset(request, "snt_isn")?,
        mss_cache: types.offset(connection, "mss_cache")?,
        tstamp_ok_bit: option_bit("tstamp_ok")?,
        snd_wscale_bit: option_bit("snd_wscale")?,
        rcv_wscale_bit: option_bit("rcv_wscale")?,
        md5sig_info: optional("md5sig_info"),
        ao_info: optional("ao_info"),
        is_mptcp: optional("is_mptcp"),
        ecn_flags: optional("ecn_flags"),
        syn_data_acked_bit: types.place(connection, "syn_data_acked")?.0,
    })
}

/// Type information: types, and the strings that name them.
struct Types<'a> {
    types: &'a [u8],
    strings: &'a [u8],
}

/// A structure's members.
#[derive(Clone, Copy)]
struct Structure<'a> {
    /// Of 12 bytes each.
    members: &'a [u8],
    /// Whether the upper byte of an offset is the size of a bit field.
    has_bit_fields: bool,
}

impl<'a> Types<'a> {
    fn parse(btf: &'a [u8]) -> Option<Self> {
        let magic = btf.get(..2)?;
        if magic != MAGIC.to_ne_bytes() {
            return None;
        }
        let header_len = word(btf, 4)? as usize;
        let body = btf.get(header_len..)?;
        let section = |at: usize| {
            let (from, len) = (word(btf, at)? as usize, word(btf, at + 4)? as usize);
            body.get(from..from.checked_add(len)?)
        };
        Some(Self {
            types: section(8)?,
            strings: section(16)?,
        })
    }

    fn is_named(&self, name_at: u32, name: &str) -> bool {
        let rest = self.strings.get(name_at as usize..).unwrap_or_default();
        rest.strip_prefix(name.as_bytes())
            .is_some_and(|behind| behind.first() == Some(&0))
    }

    fn structure(&self, name: &str) -> Option<Structure<'a>> {
        self.find(|name_at, _| self.is_named(name_at, name))
    }

    /// The first one without a name that has these members.
    fn nameless_structure(&self, members: &[&str]) -> Option<Structure<'a>> {
        self.find(|name_at, structure| {
            let has = |name: &&str| self.place(structure, name).is_some();
            name_at == 0 && members.iter().all(has)
        })
    }

    /// The first structure, of this name, that is the wanted one.
    fn find(&self, is_wanted: impl Fn(u32, Structure<'a>) -> bool) -> Option<Structure<'a>> {
        let mut at = 0;
        loop {
            let (name_at, info) = (word(self.types, at)?, word(self.types, at + 4)?);
            let (kind, count) = (info >> 24 & 0x1f, (info & 0xffff) as usize);
            let len = match kind {
                KIND_INT | KIND_VAR | KIND_DECL_TAG => 4,
                KIND_ARRAY => 12,
                KIND_STRUCT | KIND_UNION | KIND_DATASEC | KIND_ENUM64 => 12 * count,
                KIND_ENUM | KIND_FUNC_PROTO => 8 * count,
                _ => 0,
            };
            let structure = Structure {
                members: self.types.get(at + 12..at + 12 + len)?,
                has_bit_fields: info >> 31 != 0,
            };
            if kind == KIND_STRUCT && count != 0 && is_wanted(name_at, structure) {
                return Some(structure);
            }
            at += 12 + len;
        }
    }

    /// The offset in bytes of a member that is no bit field.
    fn offset(&self, structure: Structure<'_>, name: &str) -> Option<u32> {
        let (bits, size) = self.place(structure, name)?;
        (size == 0 && bits % 8 == 0).then_some(bits / 8)
    }

    /// The offset in bits of a bit field.
    fn bit_offset(&self, structure: Structure<'_>, name: &str) -> Option<u32> {
        let (bits, size) = self.place(structure, name)?;
        (size != 0).then_some(bits)
    }

    /// Where a member is in bits, and how many it has if it is a bit field.
    fn place(&self, structure: Structure<'_>, name: &str) -> Option<(u32, u32)> {
        let member = structure
            .members
            .chunks_exact(12)
            .find(|member| word(member, 0).is_some_and(|at| self.is_named(at, name)))?;
        let bits = word(member, 8)?;
        Some(if structure.has_bit_fields {
            (bits & 0xff_ffff, bits >> 24)
        } else {
            (bits, 0)
        })
    }
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    let word = bytes.get(at..at.checked_add(4)?)?;
    Some(u32::from_ne_bytes(word.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Types of a kernel: an integer, a union to be passed over, and the structures.
    fn types() -> Vec<u8> {
        let mut strings = vec![0];
        let mut name = |name: &str| {
            let at = strings.len() as u32;
            strings.extend(name.as_bytes());
            strings.push(0);
            at
        };
        let plain = |kind: u32, count: u32| kind << 24 | count;
        let mut words = vec![name("u32"), plain(KIND_INT, 0), 4, 32];
        words.extend([name("tcp_sock"), plain(KIND_UNION, 1), 4, name("x"), 1, 0]);
        let bit_fields = 1 << 31;
        words.extend([name("tcp_sock"), plain(KIND_STRUCT, 12) | bit_fields, 64]);
        words.extend([name("flag"), 1, 3 << 24 | 800]);
        words.extend([name("chrono_type"), 1, 2 << 24 | 808]);
        words.extend([name("syn_data_acked"), 1, 1 << 24 | 815]);
        words.extend([name("mss_cache"), 1, 8 * 60]);
        words.extend([name("rx_opt"), 1, 8 * 100]);
        words.extend([name("is_mptcp"), 1, 8 * 130]);
        words.extend([name("copied_seq"), 1, 8 * 56]);
        for (number, field) in (0..).zip([
            "rcv_nxt",
            "snd_nxt",
            "bytes_received",
            "bytes_sent",
            "out_of_order_queue",
        ]) {
            words.extend([name(field), 1, 64 * (number + 1)]);
        }
        words.extend([name("tcp_request_sock"), plain(KIND_STRUCT, 2), 64]);
        words.extend([name("snt_isn"), 1, 32, name("rcv_nxt"), 1, 96]);
        let options = plain(KIND_STRUCT, 3) | bit_fields;
        words.extend([name("tcp_options_received"), options, 24]);
        words.extend([name("tstamp_ok"), 1, 1 << 24 | 129]);
        words.extend([name("snd_wscale"), 1, 4 << 24 | 136]);
        words.extend([name("rcv_wscale"), 1, 4 << 24 | 140]);
        words.extend([0, plain(KIND_STRUCT, 1), 4, name("owned"), 1, 0]);
        words.extend([0, plain(KIND_STRUCT, 2), 8]);
        words.extend([name("slock"), 1, 0, name("owned"), 1, 32]);
        words.extend([name("sock"), plain(KIND_STRUCT, 1), 64]);
        words.extend([name("sk_lock"), 1, 8 * 20]);
        let len = 4 * words.len() as u32;
        let mut btf = u32::from(MAGIC).to_ne_bytes().to_vec();
        for word in [24, 0, len, len, strings.len() as u32] {
            btf.extend(word.to_ne_bytes());
        }
        btf.extend(words.iter().flat_map(|word| word.to_ne_bytes()));
        btf.extend(strings);
        btf
    }

    #[test]
    fn offsets_are_read() {
        let expected = SocketFields {
            rcv_nxt: 8,
            copied_seq: 56,
            owned: 20 + 4,
            chrono_bit: 808,
            snd_nxt: 16,
            bytes_received: 24,
            bytes_sent: 32,
            out_of_order_queue: 40,
            request_rcv_nxt: 12,
            request_snt_isn: 4,
            mss_cache: 60,
            tstamp_ok_bit: 800 + 129,
            snd_wscale_bit: 800 + 136,
            rcv_wscale_bit: 800 + 140,
            md5sig_info: 0,
            ao_info: 0,
            is_mptcp: 130,
            ecn_flags: 0,
            syn_data_acked_bit: 815,
        };
        assert_eq!(read(&types()), Some(expected));
    }

    #[test]
    fn what_is_cut_off_says_nothing() {
        let types = types();
        for len in 0..types.len() {
            let cut = read(&types[..len]);
            assert!(cut.is_none(), "{len} bytes: {cut:?}");
        }
    }

    #[test]
    fn a_kernel_that_says_nothing_is_told() {
        let unknown =
            [&[][..], &types()[..100]].map(|types| Fields(read(types).unwrap_or_default()));
        for fields in unknown {
            let problem = fields.why_unanswered().expect("nothing is known");
            assert!(problem.contains(KERNEL_TYPES), "{problem}");
        }
        let known = Fields(read(&types()).expect("the fields"));
        assert_eq!(known.why_unanswered(), None);
    }

    /// Wherever there is type information, it knows TCP.
    #[test]
    fn this_kernel_says_it() {
        if let Ok(types) = fs::read(KERNEL_TYPES) {
            let fields = read(&types).expect("the fields");
            assert!(fields.rcv_nxt != 0 && fields.bytes_sent != fields.bytes_received);
            assert_eq!(fields.snd_wscale_bit / 8, fields.rcv_wscale_bit / 8);
        }
    }
}
