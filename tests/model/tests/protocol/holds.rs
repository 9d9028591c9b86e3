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
    lost_get lost_write stranger
    plain_udp plain_tcp tcp tcp_and_udp silent_tcp pipelined quiet_tcp two_connections tcp_reader resent_replies resets
}

mod large {
    use super::*;

    macro_rules! hold {
        ($($scenario:ident)*) => {
            $(
                #[test]
                #[ignore = "takes minutes"]
                fn $scenario() {
                    assert_holds(scenarios::large::$scenario(), Rules::all());
                }
            )*
        };
    }

    hold! {
        udp_copied_twice one_id_three_times pipeline_with_accidents quiet_with_accidents
        two_connections_with_accidents
    }
}
