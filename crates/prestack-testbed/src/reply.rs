//! Replies to text GETs, read slowly and plainly.

use anyhow::{Context, Result, bail};

/// One item of a reply.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Item {
    /// The key.
    pub key: Vec<u8>,
    /// The client's flags.
    pub flags: u32,
    /// The unique number that `gets` and `gats` tell.
    pub cas: Option<u64>,
    /// The value.
    pub value: Vec<u8>,
}

/// The items of a complete reply, or nothing while more must come.
///
/// # Errors
/// When it is not a reply to a GET, or bytes follow its end.
pub(crate) fn parse(reply: &[u8]) -> Result<Option<Vec<Item>>> {
    let mut items = Vec::new();
    let mut rest = reply;
    loop {
        let Some(end) = rest.windows(2).position(|w| w == b"\r\n") else {
            return Ok(None);
        };
        let (line, after) = (&rest[..end], &rest[end + 2..]);
        if line == b"END" {
            if !after.is_empty() {
                bail!("{:?} follows END", String::from_utf8_lossy(after));
            }
            return Ok(Some(items));
        }
        let (item, bytes) = value_line(line)
            .with_context(|| format!("in the reply {:?}", String::from_utf8_lossy(reply)))?;
        if after.len() < bytes + 2 {
            return Ok(None);
        }
        if &after[bytes..bytes + 2] != b"\r\n" {
            bail!(
                "no CR LF after the value of {:?}",
                String::from_utf8_lossy(&item.key)
            );
        }
        items.push(Item {
            value: after[..bytes].to_vec(),
            ..item
        });
        rest = &after[bytes + 2..];
    }
}

/// The item without its value, and the value's length.
fn value_line(line: &[u8]) -> Result<(Item, usize)> {
    let words: Vec<&[u8]> = line.split(|&b| b == b' ').collect();
    let [b"VALUE", key, flags, bytes, cas @ ..] = words.as_slice() else {
        bail!("{:?} is not a VALUE line", String::from_utf8_lossy(line));
    };
    let cas = match cas {
        [] => None,
        [cas] => Some(number(cas)?),
        _ => bail!("{:?} is too long", String::from_utf8_lossy(line)),
    };
    let item = Item {
        key: key.to_vec(),
        flags: number(flags)?,
        cas,
        value: Vec::new(),
    };
    Ok((item, number(bytes)?))
}

fn number<N: std::str::FromStr>(word: &[u8]) -> Result<N>
where
    N::Err: std::error::Error + Send + Sync + 'static,
{
    let word = std::str::from_utf8(word)?;
    word.parse()
        .with_context(|| format!("{word:?} is not a number"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_framed_by_their_length_alone() {
        let reply = b"VALUE a 7 12\r\nEND\r\nVALUE\r\n\r\nVALUE b 0 0 42\r\n\r\nEND\r\n";
        let items = parse(reply).unwrap().unwrap();
        assert_eq!(items.len(), 2);
        assert_eq!(
            (items[0].flags, items[0].value.as_slice()),
            (7, &b"END\r\nVALUE\r\n"[..])
        );
        assert_eq!(
            (items[1].cas, items[1].value.as_slice()),
            (Some(42), &b""[..])
        );
        for cut in 0..reply.len() {
            assert_eq!(parse(&reply[..cut]).unwrap(), None, "cut at {cut}");
        }
    }

    #[test]
    fn anything_else_is_an_error() {
        for reply in [
            "ERROR\r\n",
            "END\r\nEND\r\n",
            "VALUE a 0\r\n",
            "VALUE a 0 1\r\nabcEND\r\n",
        ] {
            assert!(parse(reply.as_bytes()).is_err(), "{reply:?}");
        }
    }
}
