//! TCP flows whose end nobody sees: a client that vanishes sends no FIN, and the kernel, when it gives up
//! on it, sends none that arrives or leaves. Such a flow would keep its place in the table for ever, and
//! its backend from caching if it is owed a reply.

use std::collections::{HashMap, HashSet};

use prestack_abi::flow::{Dead, FlowKey};

/// Flows that had no socket when they were looked at last.
#[derive(Debug, Default)]
pub struct Sweep(HashMap<u32, Dead>);

impl Sweep {
    /// Compares the open flows, looked at first, with the connections that the host has. Returns the
    /// flows that had none twice in a row, and to which nothing has happened in between.
    pub fn look(
        &mut self,
        open: Vec<(FlowKey, Dead)>,
        connections: &HashSet<FlowKey>,
    ) -> Vec<Dead> {
        let without = open
            .into_iter()
            .filter(|(key, _)| !connections.contains(key))
            .map(|(_, dead)| (dead.place, dead))
            .collect();
        let before = std::mem::replace(&mut self.0, without);
        let is_dead = |dead: &&Dead| before.get(&dead.place) == Some(dead);
        self.0.values().filter(is_dead).copied().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flow(place: u32) -> (FlowKey, Dead) {
        let key = FlowKey {
            client_port: place as u16,
            ..FlowKey::default()
        };
        let dead = Dead {
            name: u64::from(place) | 1,
            asked: 7,
            place,
            next: 1,
            acked: 1,
            sent: 1,
        };
        (key, dead)
    }

    #[test]
    fn only_who_lacks_a_socket_twice_is_dead() {
        let mut sweep = Sweep::default();
        let [one, two, three, four] = [1, 2, 3, 4].map(flow);
        let all = || vec![one, two, three, four];
        let connections = HashSet::from([one.0]);
        assert_eq!(sweep.look(all(), &connections), []);
        // The third has moved on, the fourth has a connection now.
        let mut moved = three;
        moved.1.asked += 1;
        let connections = HashSet::from([one.0, four.0]);
        let open = vec![one, two, moved, four];
        assert_eq!(sweep.look(open.clone(), &connections), [two.1]);
        // Gone from the table.
        assert_eq!(sweep.look(vec![one], &connections), []);
        assert_eq!(sweep.look(open, &connections), []);
    }
}
