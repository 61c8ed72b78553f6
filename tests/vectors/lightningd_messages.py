"""Signed messages of another implementation.

Source: Core Lightning 26.06, doc/schemas/checkmessage.json and signmessage.json, examples 1 and 2.
"""

NODE_ID = "033845802d25b4e074ccfd7cd8b339a41dc75bf9978a034800444b51d42b07799a"

# (message, signature, recid, zbase)
SIGNED = (
    (
        "this is a test!",
        "b313a7ef5cec27f8be4e6389d208a5646ce3fa8fde4c5a2b84cf5d92e2c997f1"
        "4f1c53fd72897f2025add34939d918a2abd2e2f675c4402b106f7777b364f85b",
        "00",
        "d63t8j9xmusnx6f6j3tauwoewi1g3a94t9xrastmou8i5rzn3gm9nuahkx6zfnm9ry145w4j88ctteim4mtxc7qre"
        "yity55zq63sj6n5",
    ),
    (
        "message for you",
        "a797422126bb3ecee680e2edc8a4c5afc6ebaf2a05a03c37e5ab62214ea5edc0"
        "5a7db3b45ee8db4c022e6765b7258c82d0c769c8798e0c6baeb94f6fa9275302",
        "01",
        "rnu3qotbr47u7uzgodtq51fraszhp47xfen4yxbzhsisrekqwzshysu7sq4f74g5jobnh35fsh1a3ysoa7who6cqb"
        "ti47qkxp6w1qwan",
    ),
)
