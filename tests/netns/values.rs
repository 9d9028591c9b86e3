//! Values come back as they were stored, whoever answers.

use anyhow::Result;
use prestack_testbed::UdpClient;
use prestack_tests::kernel;
use prestack_tests::stage::{Stage, store, until_all_hit, until_hit};

/// Longest reply that fits one datagram of memcached's, without the frame.
const MAX_REPLY: usize = 1392;

/// Bytes without a pattern, every value of a byte among them.
fn noise(len: usize) -> Vec<u8> {
    (0..len as u32)
        .map(|i| (i.wrapping_mul(2_654_435_761) >> 23) as u8)
        .collect()
}

/// The length of the value that makes the reply for `key` as long as `reply`.
fn value_len(key: &[u8], reply: usize) -> usize {
    (0..reply)
        .rev()
        .find(|len| format!("VALUE  0 {len}\r\n\r\nEND\r\n").len() + key.len() + len <= reply)
        .expect("the reply has room for a value")
}

/// Whether a reply so much longer than its request can be served on a veth device. From Linux 6.7
/// a packet there gets no more memory than it needs: replies grow into the 256 bytes before it, of
/// which the kernel takes some. Before, every packet had a page.
fn has_room(value: &[u8]) -> bool {
    value.len() <= 190 || kernel::version() < (6, 7)
}

/// Items of which those that [`has_room`] are served, and the others come from memcached.
fn served_where_there_is_room(
    stage: &Stage,
    client: &mut UdpClient,
    items: Vec<(Vec<u8>, Vec<u8>)>,
) -> Result<()> {
    let (small, large): (Vec<_>, Vec<_>) = items.into_iter().partition(|(_, v)| has_room(v));
    store_all(stage, &small)?;
    store_all(stage, &large)?;
    until_all_hit(&stage.prestack, client, &small)?;
    let before = stage.prestack.stats()?.get("fills")?;
    for _ in 0..10 {
        for (key, value) in &large {
            assert_eq!(client.get(key)?.as_ref(), Some(value));
        }
    }
    // What cannot be sent is not fetched again and again: twice it is, to be admitted, and once more when it ages.
    let fills = stage.prestack.stats()?.get("fills")? - before;
    assert!(
        fills <= 3 * large.len() as u64,
        "{fills} fills of {} items",
        large.len()
    );
    Ok(())
}

fn store_all(stage: &Stage, items: &[(Vec<u8>, Vec<u8>)]) -> Result<()> {
    let mut behind = stage.behind()?;
    items
        .iter()
        .try_for_each(|(key, value)| store(&mut behind, key, value))
}

#[test]
fn values_of_all_sizes_are_served() -> Result<()> {
    let stage = Stage::new()?;
    let long = vec![b'K'; 250];
    let mut items = Vec::new();
    let sizes = (0..40).chain((40..1360).step_by(37));
    for size in sizes.chain([
        value_len(b"k0000", MAX_REPLY - 2),
        value_len(b"k0000", MAX_REPLY),
    ]) {
        items.push((format!("k{size:04}").into_bytes(), noise(size)));
    }
    items.push((b"k".to_vec(), noise(100)));
    items.push((long.clone(), noise(value_len(&long, MAX_REPLY))));
    items.push(([&long[..249], b"L"].concat(), Vec::new()));
    served_where_there_is_room(&stage, &mut stage.udp()?, items)
}

#[test]
fn values_are_never_taken_for_protocol() -> Result<()> {
    let stage = Stage::new()?;
    let contents: [&[u8]; 12] = [
        b"\r\n",
        b"\r",
        b"\n",
        b"END\r\n",
        b"\r\nEND\r\n",
        b"a\r\nEND\r\nVALUE x 0 1\r\ny\r\nEND\r\n",
        b"VALUE hostile5 0 1\r\nZ\r\nEND\r\n",
        b"\0",
        b"\0\0\0\0\0\0\0\0",
        &[0xff; 9],
        b"set hostile0 0 0 1\r\nX\r\n",
        b"\x80\x01\x00\x01",
    ];
    let mut items: Vec<(Vec<u8>, Vec<u8>)> = contents
        .iter()
        .enumerate()
        .map(|(i, value)| (format!("hostile{i}").into_bytes(), value.to_vec()))
        .collect();
    items.push((b"low-bytes".to_vec(), (0..128).collect()));
    items.push((b"high-bytes".to_vec(), (128..=255).collect()));
    items.push((
        b"\xff\x80key\xfe".to_vec(),
        b"a key may hold any byte above the space".to_vec(),
    ));
    items.push((b"END".to_vec(), b"END".to_vec()));
    items.push((b"VALUE".to_vec(), b"VALUE END 0 0".to_vec()));
    store_all(&stage, &items)?;
    until_all_hit(&stage.prestack, &mut stage.udp()?, &items)
}

#[test]
fn large_values_come_from_memcached() -> Result<()> {
    let stage = Stage::new()?;
    let mut udp = stage.udp()?;
    let items = [
        (b"over".to_vec(), noise(value_len(b"over", MAX_REPLY) + 1)),
        (b"large".to_vec(), noise(5_000)),
        (b"huge".to_vec(), noise(20_000)),
    ];
    store_all(&stage, &items)?;
    // Once something else is served, these could be as well.
    store_all(&stage, &[(b"small".to_vec(), b"x".to_vec())])?;
    until_hit(&stage.prestack, &mut udp, b"small", b"x")?;
    let before = stage.hits()?;
    for _ in 0..5 {
        for (key, value) in &items {
            assert_eq!(udp.get(key)?.as_ref(), Some(value));
        }
    }
    assert_eq!(stage.hits()?, before);
    Ok(())
}

#[test]
fn replies_above_the_mtu_come_from_memcached() -> Result<()> {
    let stage = Stage::new()?;
    let mut udp = stage.udp()?;
    let items = [
        (b"fits".to_vec(), noise(50)),
        (b"does-not".to_vec(), noise(180)),
    ];
    store_all(&stage, &items)?;
    until_all_hit(&stage.prestack, &mut udp, &items)?;

    stage.bed.set_mtu(0, 200)?;
    until_mtu_is_known(&stage)?;
    assert_eq!(udp.get(&items[0].0)?.as_ref(), Some(&items[0].1));
    let before = stage.hits()?;
    for _ in 0..5 {
        assert_eq!(udp.get(&items[1].0)?.as_ref(), Some(&items[1].1));
    }
    assert_eq!(stage.hits()?, before);
    Ok(())
}

/// Waits until a value that no longer fits the MTU of 200 is not served.
fn until_mtu_is_known(stage: &Stage) -> Result<()> {
    let mut udp = stage.udp()?;
    let limit = std::time::Duration::from_secs(10);
    prestack_testbed::pace::wait_for("the new MTU to be respected", limit, || {
        let before = stage.hits()?;
        // Until then the device drops what is too long for it.
        let answered = udp.get(b"does-not").is_ok();
        Ok((answered && stage.hits()? == before).then_some(()))
    })
}

#[test]
fn several_keys_are_served_if_all_are_cached() -> Result<()> {
    let stage = Stage::new()?;
    let mut udp = stage.udp()?;
    let items: Vec<(Vec<u8>, Vec<u8>)> = (0..5)
        .map(|i| (format!("key{i}").into_bytes(), noise(i * 5)))
        .collect();
    store_all(&stage, &items)?;
    until_all_hit(&stage.prestack, &mut udp, &items)?;

    let keys: Vec<&[u8]> = items.iter().map(|(key, _)| key.as_slice()).collect();
    let check = |got: Vec<prestack_testbed::Item>| {
        let got: Vec<_> = got.into_iter().map(|item| (item.key, item.value)).collect();
        assert_eq!(got, items);
    };
    let before = stage.hits()?;
    check(udp.get_many(&keys)?);
    assert_eq!(stage.hits()?, before + 1, "all keys were cached");

    let with_missing = [&keys[..3], &[b"missing"], &keys[3..]].concat();
    check(udp.get_many(&with_missing)?);
    check(udp.get_many(&with_missing)?);
    assert_eq!(
        stage.hits()?,
        before + 1,
        "a key that does not exist was never cached"
    );
    Ok(())
}

#[test]
fn several_keys_are_learned_from_one_request() -> Result<()> {
    let stage = Stage::new()?;
    let mut udp = stage.udp()?;
    let items: Vec<(Vec<u8>, Vec<u8>)> = (0..4)
        .map(|i| (format!("multi{i}").into_bytes(), noise(20 + i)))
        .collect();
    store_all(&stage, &items)?;
    let keys: Vec<&[u8]> = items.iter().map(|(key, _)| key.as_slice()).collect();
    let limit = std::time::Duration::from_secs(10);
    prestack_testbed::pace::wait_for("a hit of several keys", limit, || {
        let before = stage.hits()?;
        let got = udp.get_many(&keys)?;
        assert!(
            got.iter()
                .map(|item| &item.value)
                .eq(items.iter().map(|(_, value)| value))
        );
        Ok((stage.hits()? == before + 1).then_some(()))
    })
}

#[test]
fn spellings_that_memcached_accepts_are_served() -> Result<()> {
    let stage = Stage::new()?;
    let mut udp = stage.udp()?;
    store(&mut stage.behind()?, b"key", b"value")?;
    until_hit(&stage.prestack, &mut udp, b"key", b"value")?;
    for request in [
        "get key\r\n",
        "get key\n",
        "get  key \r\n",
        "get key  \n",
        "get   key\r\n",
    ] {
        let before = stage.hits()?;
        let reply = udp.request(request.as_bytes())?;
        assert_eq!(reply, b"VALUE key 0 5\r\nvalue\r\nEND\r\n", "{request:?}");
        assert_eq!(stage.hits()?, before + 1, "{request:?}");
    }
    for request in ["GET key\r\n", "get\r\n", "get \r\n"] {
        let before = stage.hits()?;
        let reply = udp.request(request.as_bytes())?;
        assert!(reply.starts_with(b"ERROR"), "{request:?}: {reply:?}");
        assert_eq!(stage.hits()?, before, "{request:?}");
    }
    Ok(())
}

#[test]
fn flags_and_unique_numbers_are_memcacheds() -> Result<()> {
    let stage = Stage::new()?;
    let (mut udp, mut behind) = (stage.udp()?, stage.behind()?);
    behind.command(b"set key 4294967295 0 5\r\nvalue\r\n")?;
    until_hit(&stage.prestack, &mut udp, b"key", b"value")?;
    assert_eq!(udp.get_many(&[b"key"])?[0].flags, u32::MAX);
    behind.send(b"gets key\r\n")?;
    let expected = behind.items()?;
    for _ in 0..3 {
        let id = udp.send(b"gets key\r\n")?;
        assert_eq!(udp.items(id)?, expected);
    }
    Ok(())
}

#[test]
fn ipv6_clients_are_served() -> Result<()> {
    let stage = Stage::new()?;
    let mut udp = UdpClient::connect(&stage.bed.client, stage.server6())?;
    let items: Vec<(Vec<u8>, Vec<u8>)> = [0, 1, 31, 32, 33, 700, value_len(b"k0000", MAX_REPLY)]
        .map(|len| (format!("k{len:04}").into_bytes(), noise(len)))
        .into();
    served_where_there_is_room(&stage, &mut udp, items)
}
