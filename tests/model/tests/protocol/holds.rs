//! With all rules.

use prestack_model::rules::Rules;

use crate::{assert_holds, scenarios};

macro_rules! hold {
    ($($scenario:ident)*) => {
        $(
            #[test]
            fn $scenario() {
                assert_holds(scenarios::$scenario(), Rules::all());
            }
        )*
    };
}

hold! {
    udp two_udp_writers reused_ids one_flow reused_ids_of_writes reused_ids_of_both silent_udp
    plain_udp plain_tcp tcp tcp_and_udp silent_tcp pipelined quiet_tcp two_connections tcp_reader resent_replies resets
}
