/* The kernel's own limit: fills IPVS with SERVICES x ENDPOINTS over generic netlink, 256 messages to a sendmsg.
 *
 * Prints the seconds from the first sendmsg to the answer to the last one. The messages are made before that. Every
 * message is what the agent sends too: linux/ip_vs.h, without an acknowledgement but for the last of a batch.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <linux/genetlink.h>
#include <linux/ip_vs.h>
#include <linux/netlink.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>

enum { BATCH = 256, ROOM = 256 };

static int netlink;
static uint16_t family;
static uint32_t sequence;

static void fail(const char *what)
{
    perror(what);
    exit(1);
}

static char *put(char *at, uint16_t type, const void *value, uint16_t length)
{
    struct nlattr header = {.nla_len = (uint16_t)(NLA_HDRLEN + length), .nla_type = type};
    memcpy(at, &header, sizeof header);
    memset(at + NLA_HDRLEN, 0, NLA_ALIGN(length));
    memcpy(at + NLA_HDRLEN, value, length);
    return at + NLA_HDRLEN + NLA_ALIGN(length);
}

static char *put_number(char *at, uint16_t type, uint32_t value) { return put(at, type, &value, 4); }
static char *put_short(char *at, uint16_t type, uint16_t value) { return put(at, type, &value, 2); }

static char *begin(char *at, uint16_t type, uint8_t command)
{
    struct nlmsghdr header = {.nlmsg_type = type, .nlmsg_flags = NLM_F_REQUEST, .nlmsg_seq = ++sequence};
    struct genlmsghdr generic = {.cmd = command, .version = 1};
    memcpy(at, &header, sizeof header);
    memcpy(at + NLMSG_HDRLEN, &generic, sizeof generic);
    return at + NLMSG_HDRLEN + GENL_HDRLEN;
}

static char *end(char *start, char *at)
{
    ((struct nlmsghdr *)start)->nlmsg_len = (uint32_t)(at - start);
    return at;
}

static void close_nested(char *start, char *at) { ((struct nlattr *)start)->nla_len = (uint16_t)(at - start); }

static char *virtual_server(char *at, uint32_t address, int whole)
{
    char *start = at, scheduler[] = "rr";
    unsigned char ip[16] = {0};
    struct ip_vs_flags flags = {.flags = 0, .mask = ~0u};
    uint32_t host = htonl(address);
    memcpy(ip, &host, 4);
    at = put(at, IPVS_CMD_ATTR_SERVICE | NLA_F_NESTED, "", 0);
    at = put_short(at, IPVS_SVC_ATTR_AF, AF_INET);
    at = put_short(at, IPVS_SVC_ATTR_PROTOCOL, 6);
    at = put(at, IPVS_SVC_ATTR_ADDR, ip, 16);
    at = put_short(at, IPVS_SVC_ATTR_PORT, htons(80));
    if (whole) {
        at = put(at, IPVS_SVC_ATTR_SCHED_NAME, scheduler, sizeof scheduler);
        at = put(at, IPVS_SVC_ATTR_FLAGS, &flags, sizeof flags);
        at = put_number(at, IPVS_SVC_ATTR_TIMEOUT, 0);
        at = put_number(at, IPVS_SVC_ATTR_NETMASK, ~0u);
    }
    close_nested(start, at);
    return at;
}

static char *real_server(char *at, uint32_t address)
{
    char *start = at;
    unsigned char ip[16] = {0};
    uint32_t host = htonl(address);
    memcpy(ip, &host, 4);
    at = put(at, IPVS_CMD_ATTR_DEST | NLA_F_NESTED, "", 0);
    at = put(at, IPVS_DEST_ATTR_ADDR, ip, 16);
    at = put_short(at, IPVS_DEST_ATTR_PORT, htons(8080));
    at = put_short(at, IPVS_DEST_ATTR_ADDR_FAMILY, AF_INET);
    at = put_number(at, IPVS_DEST_ATTR_FWD_METHOD, 0);
    at = put_number(at, IPVS_DEST_ATTR_WEIGHT, 1);
    at = put_number(at, IPVS_DEST_ATTR_U_THRESH, 0);
    at = put_number(at, IPVS_DEST_ATTR_L_THRESH, 0);
    close_nested(start, at);
    return at;
}

static void transmit(const char *data, size_t length)
{
    if (send(netlink, data, length, 0) != (ssize_t)length)
        fail("send");
}

static void find_family(void)
{
    char message[ROOM], answer[8192], name[] = "IPVS";
    char *at = begin(message, GENL_ID_CTRL, CTRL_CMD_GETFAMILY);
    at = end(message, put(at, CTRL_ATTR_FAMILY_NAME, name, sizeof name));
    transmit(message, (size_t)(at - message));
    ssize_t length = recv(netlink, answer, sizeof answer, 0);
    for (char *found = answer + NLMSG_HDRLEN + GENL_HDRLEN; found < answer + length;) {
        struct nlattr *attribute = (struct nlattr *)found;
        if (attribute->nla_len < NLA_HDRLEN)
            break;
        if (attribute->nla_type == CTRL_ATTR_FAMILY_ID)
            memcpy(&family, found + NLA_HDRLEN, 2);
        found += NLA_ALIGN(attribute->nla_len);
    }
    if (!family)
        fail("the kernel has no IPVS");
}

static void await(uint32_t last)
{
    static char answer[65536];
    for (;;) {
        ssize_t length = recv(netlink, answer, sizeof answer, 0);
        if (length < NLMSG_HDRLEN)
            fail("recv");
        for (struct nlmsghdr *found = (struct nlmsghdr *)answer; NLMSG_OK(found, (size_t)length);
             found = NLMSG_NEXT(found, length)) {
            struct nlmsgerr *error = NLMSG_DATA(found);
            if (found->nlmsg_type == NLMSG_ERROR && error->error) {
                errno = -error->error;
                fail("the kernel refuses a message");
            }
            if (found->nlmsg_seq == last)
                return;
        }
    }
}

int main(int count, char **words)
{
    if (count != 3) {
        fprintf(stderr, "usage: fill SERVICES ENDPOINTS\n");
        return 2;
    }
    uint32_t services = (uint32_t)atoi(words[1]), endpoints = (uint32_t)atoi(words[2]);
    uint32_t vip = (10u << 24) + (96 << 16) + 10, pod = (10u << 24) + (128 << 16) + 1;
    int buffer = 4 << 20;
    netlink = socket(AF_NETLINK, SOCK_RAW, NETLINK_GENERIC);
    if (netlink < 0)
        fail("socket");
    setsockopt(netlink, SOL_SOCKET, SO_SNDBUFFORCE, &buffer, sizeof buffer);
    setsockopt(netlink, SOL_SOCKET, SO_RCVBUFFORCE, &buffer, sizeof buffer);
    find_family();
    size_t total = (size_t)services * (endpoints + 1);
    char *messages = malloc(total * ROOM), **starts = malloc((total + 1) * sizeof *starts), *at = messages;
    size_t made = 0;
    sequence = 0;
    for (uint32_t service = 0; service < services; service++) {
        starts[made++] = at;
        at = end(starts[made - 1], virtual_server(begin(at, family, IPVS_CMD_NEW_SERVICE), vip + service, 1));
        for (uint32_t endpoint = 0; endpoint < endpoints; endpoint++) {
            starts[made++] = at;
            at = virtual_server(begin(at, family, IPVS_CMD_NEW_DEST), vip + service, 0);
            at = end(starts[made - 1], real_server(at, pod + service * endpoints + endpoint));
        }
    }
    starts[made] = at;
    struct timespec before, after;
    clock_gettime(CLOCK_MONOTONIC, &before);
    for (size_t start = 0; start < made; start += BATCH) {
        size_t stop = start + BATCH < made ? start + BATCH : made;
        struct nlmsghdr *last = (struct nlmsghdr *)starts[stop - 1];
        last->nlmsg_flags |= NLM_F_ACK;
        transmit(starts[start], (size_t)(starts[stop] - starts[start]));
        await(last->nlmsg_seq);
    }
    clock_gettime(CLOCK_MONOTONIC, &after);
    printf("%.6f\n", (double)(after.tv_sec - before.tv_sec) + (double)(after.tv_nsec - before.tv_nsec) / 1e9);
    return 0;
}
