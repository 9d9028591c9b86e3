//! TCP flows of which nothing is heard any more, by what user space sees of their sockets.
//!
//! Some have lost them: a client that vanishes sends no FIN, and the kernel, when it gives up on it, sends none that
//! arrives or leaves. Such a flow would keep its place in the table for ever. Others are idle: what their clients have
//! sent could not be understood, and memcached has read it and waits for more. Their backends would fetch nothing for
//! as long as they are open.

use std::collections::HashMap;

use prestack_abi::flow::{Finding, FlowKey};

use crate::{discovery::procnet::Standing, maps::OpenFlow};

/// What was found of flows when they were looked at last, by place.
#[derive(Debug, Default)]
pub struct Sweep(HashMap<u32, Finding>);

impl Sweep {
    /// Compares the open flows, looked at first, with the connections that the host has. Returns what was found twice in
    /// a row of flows to which nothing has happened in between.
    pub fn look(
        &mut self,
        open: Vec<OpenFlow>,
        connections: &HashMap<FlowKey, Standing>,
    ) -> Vec<Finding> {
        let found = open.into_iter().filter_map(|flow| {
            let what = match connections.get(&flow.key) {
                None => Finding::GONE,
                Some(standing) if standing.is_at_rest && flow.is_waited_for => Finding::IDLE,
                Some(_) => return None,
            };
            let found = Finding { what, ..flow.found };
            Some((found.place, found))
        });
        let before = std::mem::replace(&mut self.0, found.collect());
        let is_same = |found: &&Finding| before.get(&found.place) == Some(found);
        self.0.values().filter(is_same).copied().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flow(place: u32) -> OpenFlow {
        let key = FlowKey {
            client_port: place as u16,
            ..FlowKey::default()
        };
        let found = Finding {
            name: u64::from(place) | 1,
            asked: 7,
            place,
            next: 1,
            acked: 1,
            sent: 1,
            ..Finding::default()
        };
        OpenFlow {
            key,
            found,
            is_waited_for: false,
        }
    }

    /// What is known of an open connection.
    fn standing(is_at_rest: bool) -> Standing {
        Standing {
            is_at_rest,
            is_ending: false,
        }
    }

    #[test]
    fn only_who_lacks_a_socket_twice_is_gone() {
        let mut sweep = Sweep::default();
        let [one, two, three, four] = [1, 2, 3, 4].map(flow);
        let all = || vec![one, two, three, four];
        let connections = HashMap::from([(one.key, standing(true))]);
        assert_eq!(sweep.look(all(), &connections), []);
        // The third has moved on, the fourth has a connection now.
        let mut moved = three;
        moved.found.asked += 1;
        let connections = HashMap::from([one, four].map(|flow| (flow.key, standing(true))));
        let open = vec![one, two, moved, four];
        assert_eq!(sweep.look(open.clone(), &connections), [two.found]);
        // Gone from the table.
        assert_eq!(sweep.look(vec![one], &connections), []);
        assert_eq!(sweep.look(open, &connections), []);
    }

    #[test]
    fn only_who_is_waited_for_and_at_rest_twice_is_idle() {
        let mut sweep = Sweep::default();
        let [one, two, three, four] = [1, 2, 3, 4].map(|place| OpenFlow {
            is_waited_for: place != 1,
            ..flow(place)
        });
        let rest = |busy: FlowKey| {
            let keys = [one, two, three, four].map(|flow| flow.key);
            HashMap::from(keys.map(|key| (key, standing(key != busy))))
        };
        let all = vec![one, two, three, four];
        assert_eq!(sweep.look(all, &rest(four.key)), []);
        let mut heard = three;
        heard.found.heard_at += 1;
        let idle = Finding {
            what: Finding::IDLE,
            ..two.found
        };
        let open = vec![one, two, heard, four];
        assert_eq!(sweep.look(open, &rest(FlowKey::default())), [idle]);
        // Not at rest any more.
        assert_eq!(sweep.look(vec![two], &rest(two.key)), []);
    }
}
