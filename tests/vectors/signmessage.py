"""Core Lightning 26.06, examples in doc/schemas/signmessage.json and checkmessage.json.

(text, zbase, node id in hex)
"""

SIGNED = (
    (
        "message for you",
        "rnu3qotbr47u7uzgodtq51fraszhp47xfen4yxbzhsisrekqwzshysu7sq4f74g5jobnh35fsh1a3ysoa7who6cqbt"
        "i47qkxp6w1qwan",
        "033845802d25b4e074ccfd7cd8b339a41dc75bf9978a034800444b51d42b07799a",
    ),
    (
        "this is a test!",
        "d63t8j9xmusnx6f6j3tauwoewi1g3a94t9xrastmou8i5rzn3gm9nuahkx6zfnm9ry145w4j88ctteim4mtxc7qrey"
        "ity55zq63sj6n5",
        "033845802d25b4e074ccfd7cd8b339a41dc75bf9978a034800444b51d42b07799a",
    ),
)
