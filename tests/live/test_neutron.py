"""Bays on Neutron, proven by packets: tenants' containers and pods on real ports, kept apart, opened and closed by rules.

Two hosts, so that what goes from one to the other crosses a tunnel. Both tenants'
networks have the same addresses on purpose.
"""

import concurrent.futures
import signal
import time

import pytest

from testbed import base
from tests.deployment import until
from tests.live.conftest import running, servers
from tests.tenants import SERVE, Machine, Tenant, gets, leftovers, on_neutron, unused


@pytest.fixture(scope="module")
def wired(identity, networking, docker_hosts, tmp_path_factory):
    """A deployment on Neutron: two hosts, tenants known by Keystone."""
    servers()
    found = on_neutron(f"wired-{base.TAG}", tmp_path_factory.mktemp("wired"), docker_hosts[:2], identity, networking)
    yield from running(found, identity.secret_words)
    assert leftovers(found) == []


@pytest.fixture(scope="module")
def image(docker_hosts):
    return docker_hosts[0].image


@pytest.fixture(scope="module")
def alpha(wired, identity):
    return Tenant(wired, identity, "alpha")


@pytest.fixture(scope="module")
def beta(wired, identity):
    return Tenant(wired, identity, "beta")


@pytest.fixture(scope="module")
def ours(alpha):
    return alpha.bay("ours", 2)


@pytest.fixture(scope="module")
def theirs(beta):
    return beta.bay("theirs", 2)


@pytest.fixture(scope="module")
def machines(wired, alpha, beta, ours, theirs, image):
    """Containers of two tenants, of each at least one on either host, by name."""
    # in an order that gives each tenant both hosts: the emptier is taken
    wanted = [(alpha, ours, "a0"), (alpha, ours, "a1"), (beta, theirs, "b0"), (beta, theirs, "b1"), (alpha, ours, "a2")]
    found = {name: Machine(wired, tenant.container(bay, name, image)) for tenant, bay, name in wanted}
    for tenant in ("a", "b"):
        assert len({m.host.name for name, m in found.items() if name.startswith(tenant)}) == 2
    return found


def _pairs(machines):
    """Return (one of alpha's, another on the same host, another on the other host), and beta's."""
    mine = [m for name, m in sorted(machines.items()) if name.startswith("a")]
    theirs = [m for name, m in sorted(machines.items()) if name.startswith("b")]
    near = next((a, b) for a in mine for b in mine if a is not b and a.host == b.host)
    far = next(m for m in mine if m.host != near[0].host)
    return *near, far, theirs


def test_a_bay_is_a_network_router_and_group_of_the_tenants(alpha, beta, ours, theirs):
    for tenant, bay in ((alpha, ours), (beta, theirs)):
        (network,) = [n for n in tenant.neutron("GET", "/networks")["networks"] if n["project_id"] == tenant.id]
        (subnet,) = [s for s in tenant.neutron("GET", "/subnets")["subnets"] if s["project_id"] == tenant.id]
        (router,) = tenant.neutron("GET", "/routers")["routers"]
        (group,) = [g for g in tenant.neutron("GET", "/security-groups")["security_groups"] if g["name"] != "default"]
        assert {network["name"], subnet["name"], router["name"], group["name"]} == {f"magnum-{bay['name']}"}
        assert router["external_gateway_info"]["external_fixed_ips"][0]["ip_address"].startswith("172.24.4.")
        opened = [
            (r["ethertype"], r["remote_group_id"]) for r in group["security_group_rules"] if r["direction"] == "ingress"
        ]
        assert sorted(opened) == [("IPv4", group["id"]), ("IPv6", group["id"])]
        assert network["description"].endswith(f":bay:{bay['uuid']}")


def test_a_container_has_a_port_and_its_namespace_what_the_port_says(wired, alpha, ours, machines):
    one = next(m for name, m in machines.items() if name.startswith("a"))
    (port,) = alpha.ports(device_id=one.made["uuid"])
    admin = wired.neutron.request("GET", f"/ports/{port['id']}")["port"]
    assert admin["binding:host_id"] == one.host.name and admin["status"] == "ACTIVE"
    assert (port["project_id"], port["device_owner"]) == (alpha.id, "magnum:container")
    assert one.made["security_groups"] == port["security_groups"]
    (link,) = one.json("link", "show", "eth0")
    network = alpha.neutron("GET", f"/networks/{port['network_id']}")["network"]
    assert (link["address"], link["mtu"]) == (port["mac_address"], network["mtu"])
    (address,) = list(one.json("-4", "address", "show", "eth0")[0]["addr_info"])
    assert (address["local"], address["prefixlen"]) == (port["fixed_ips"][0]["ip_address"], 24)
    subnet = alpha.neutron("GET", f"/subnets/{port['fixed_ips'][0]['subnet_id']}")["subnet"]
    assert [r["gateway"] for r in one.json("route", "show", "default")] == [subnet["gateway_ip"]]
    path = f"/v1/containers/{one.made['uuid']}/execute?command=cat+/etc/resolv.conf"
    assert "nameserver 192.0.2.53" in alpha.ask("PUT", path)[1]["output"]
    path = f"/v1/containers/{one.made['uuid']}/execute?command=hostname"
    assert alpha.ask("PUT", path)[1]["output"].strip() == one.made["name"]


def test_one_tenant_reaches_itself_on_both_hosts_and_no_other_tenant(machines):
    one, near, far, theirs = _pairs(machines)
    for other in (near, far):
        assert one.reaches(other) and other.reaches(one)
        assert one.pings(other.ip) and one.arps(other.ip)
    assert theirs[0].reaches(theirs[1]) and theirs[1].arps(theirs[0].ip)
    mine = {m.ip for name, m in machines.items() if name.startswith("a")}
    others = {m.ip for m in theirs}
    tries = [(stranger, target.ip) for stranger in theirs for target in (one, near, far) if target.ip not in others]
    tries += [(one, stranger.ip) for stranger in theirs if stranger.ip not in mine]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda t: (t[0].pings(t[1]), t[0].arps(t[1]), t[0].gets(t[1])), tries))
    assert found == [(False, False, None)] * len(tries) and tries


def test_no_tenant_takes_an_address_that_is_not_its_own(alpha, beta, machines):
    one, near, _, theirs = _pairs(machines)
    stolen = unused(alpha, beta)
    for thief, target in ((one, near), (theirs[0], theirs[1])):
        thief.run("ip", "address", "add", f"{stolen}/24", "dev", "eth0")
        assert thief.pings(target.ip) and not thief.pings(target.ip, stolen)
        assert not target.arps(stolen)
    # the other way round: who owns the network may allow it
    (port,) = alpha.ports(device_id=one.made["uuid"])
    body = {"port": {"allowed_address_pairs": [{"ip_address": stolen}]}}
    alpha.neutron("PUT", f"/ports/{port['id']}", body)
    until(lambda: one.pings(near.ip, stolen), 20)
    alpha.neutron("PUT", f"/ports/{port['id']}", {"port": {"allowed_address_pairs": []}})
    until(lambda: not one.pings(near.ip, stolen), 20)
    for thief in (one, theirs[0]):
        thief.run("ip", "address", "del", f"{stolen}/24", "dev", "eth0")


def test_a_rule_opens_and_closes_and_groups_are_replaced(wired, alpha, ours, machines, image):
    one, _, far, _ = _pairs(machines)
    group = alpha.made("security_group", {"name": "web"})
    made = alpha.container(ours, "shut", image, security_groups=["web"])
    shut = Machine(wired, made)
    assert made["security_groups"] == [group["id"]]
    assert one.gets(shut.ip) is None and far.gets(shut.ip) is None
    rule = alpha.made("security_group_rule", {
        "security_group_id": group["id"], "direction": "ingress", "protocol": "tcp", "port_range_min": 80, "port_range_max": 80,
    })  # fmt: skip
    until(lambda: one.gets(shut.ip) == "shut" and far.gets(shut.ip) == "shut", 20)
    assert not one.pings(shut.ip)
    alpha.neutron("DELETE", f"/security-group-rules/{rule['id']}")
    until(lambda: one.gets(shut.ip) is None and far.gets(shut.ip) is None, 20)
    bays = one.made["security_groups"]
    patch = [{"op": "replace", "path": "/security_groups", "value": bays}]
    status, changed = alpha.ask("PATCH", f"/v1/containers/{made['uuid']}?wait=30", patch)
    assert (status, changed["security_groups"], changed["status"]) == (200, bays, "Running")
    until(lambda: one.gets(shut.ip) == "shut", 20)
    # what its owner changes in Neutron is shown, and stays
    (port,) = alpha.ports(device_id=made["uuid"])
    alpha.neutron("PUT", f"/ports/{port['id']}", {"port": {"security_groups": [group["id"]]}})
    until(lambda: alpha.show("containers", made["uuid"])["security_groups"] == [group["id"]], 20)
    alpha.gone("containers", made["uuid"])
    alpha.neutron("DELETE", f"/security-groups/{group['id']}")


def test_several_networks_and_addresses_of_ones_choice(wired, alpha, beta, ours, image):
    network = alpha.made("network", {"name": "backstage"})
    subnet = alpha.made(
        "subnet", {"network_id": network["id"], "ip_version": 4, "cidr": "10.9.0.0/24", "enable_dhcp": False}
    )
    free = unused(alpha, beta)
    asked = [{"fixed_ip": free}, {"network": "backstage", "subnet": subnet["id"], "fixed_ip": "10.9.0.7"}]
    made = alpha.container(ours, "two", image, networks=asked)
    assert made["addresses"] == {"magnum-ours": [free], "backstage": ["10.9.0.7"]}
    two = Machine(wired, made)
    other = Machine(wired, alpha.container(ours, "other", image, networks=[{"network": network["id"]}]))
    group = next(g["id"] for g in alpha.neutron("GET", "/security-groups?name=default")["security_groups"])
    assert alpha.ports(network_id=network["id"], device_id=made["uuid"])[0]["security_groups"] == [group]
    inner = other.made["addresses"]["backstage"][0]
    assert two.gets("10.244.0.1", 80) is None and until(
        lambda: two.gets(inner) == "other" and other.gets("10.9.0.7") == "two", 20
    )
    assert [r["dev"] for r in two.json("route", "show", "default")] == ["eth0"]
    # no other tenant's, none that is not there, no address that is taken or elsewhere
    for tenant, bay, wish, words in (
        (beta, None, {"network": network["id"]}, "networks[0].network: there is no network"),
        (alpha, ours, {"network": "nowhere"}, "networks[0].network: there is no network 'nowhere'"),
        (alpha, ours, {"fixed_ip": free}, free),
        (alpha, ours, {"fixed_ip": "192.0.2.1"}, "networks[0].fixed_ip: is in no subnet of magnum-ours"),
        (
            alpha,
            ours,
            {"network": "backstage", "subnet": "magnum-ours"},
            "networks[0].subnet: is not a subnet of backstage",
        ),
    ):
        bay = bay or beta.show("bays", "theirs")
        body = {"bay_uuid": bay["uuid"], "image": image, "networks": [wish], "start": True}
        status, refused = tenant.ask("POST", "/v1/containers?wait=30", body)
        assert refused["status"] == "Error" and words in refused["status_reason"], (status, refused)
        assert tenant.ports(device_id=refused["uuid"]) == []
        tenant.gone("containers", refused["uuid"])
    alpha.gone("containers", made["uuid"], other.made["uuid"])
    assert alpha.ports(network_id=network["id"]) == []
    alpha.neutron("DELETE", f"/networks/{network['id']}")


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"ports": ["8080:80"]}, "ports[0].host_port"),
        ({"networks": [{"fixed_ip": "ten"}]}, "networks[0].fixed_ip"),
        ({"networks": [{"network": "x"}, {"network": "x"}]}, "networks[1]"),
        ({"networks": [{"fixed_ip": "10.0.0.1"}, {}]}, "networks"),
        ({"security_groups": [""]}, "security_groups[0]"),
    ],
)
def test_what_makes_no_sense_is_refused_at_once(alpha, ours, image, body, field):
    status, refused = alpha.ask("POST", "/v1/containers", {"bay_uuid": ours["uuid"], "image": image, **body})
    assert status == 400 and refused["errors"][0]["detail"].startswith(f"{field}: "), refused


def test_pods_behind_a_service_are_reached_by_its_address_and_name(wired, alpha, beta, ours, machines, image):
    one, _, far, theirs = _pairs(machines)
    pods = [Machine(wired, alpha.pod(ours, f"web{n}", image)) for n in range(2)]
    assert {pod.made["security_groups"][0] for pod in pods} == set(one.made["security_groups"])
    assert one.reaches(pods[0]) and pods[0].reaches(pods[1])
    status, service = alpha.service(ours, "web")
    assert (status, service["status"]) == (201, "Active"), service
    address = until(lambda: len((found := alpha.show("services", "web"))["endpoints"]) == 2 and found["ip"])
    for asker in (one, far, *pods):
        until(lambda asker=asker: {asker.gets(address, 8080) for _ in range(6)} == {"web0", "web1"}, 30)
    path = f"/v1/containers/{one.made['uuid']}/execute?command=wget+-qO-+http://web:8080/"
    until(lambda: alpha.ask("PUT", path)[1]["output"].strip() in ("web0", "web1"), 20)
    assert theirs[0].gets(address, 8080) is None and theirs[0].gets(pods[0].ip) is None
    # one that comes later has them from its first moment, one that goes is asked no more
    late = ["sh", "-c", "wget -qO- http://web:8080/ && sleep 100"]
    made = alpha.container(ours, "late", image, command=late)
    until(lambda: alpha.ask("GET", f"/v1/containers/{made['uuid']}/logs")[1]["output"].strip() in ("web0", "web1"), 20)
    alpha.gone("pods", pods[0].made["uuid"])
    until(lambda: len(alpha.show("services", "web")["endpoints"]) == 1)
    until(lambda: {one.gets(address, 8080) for _ in range(4)} == {"web1"}, 10)
    alpha.gone("services", "web")
    assert one.gets(address, 8080) is None and one.run("nft", "list", "tables").stdout == ""
    alpha.gone("pods", pods[1].made["uuid"])
    alpha.gone("containers", made["uuid"])


def test_a_service_has_a_floating_ip_and_lets_in_whom_it_names(wired, alpha, ours, machines, image):
    outside = next(h for h in wired.hosts.values() if h.name == "host1").enter
    one = next(m for name, m in machines.items() if name.startswith("a"))
    pod = Machine(wired, alpha.pod(ours, "shop", image))
    status, service = alpha.service(ours, "shop", external=True)
    assert (status, service["status"], service["external"]) == (201, "Active", True), service
    address = service["external_ip"]
    assert address.startswith("172.24.4.")
    until(lambda: gets(outside, address, 8080) == "shop", 30)
    # the pod itself stays shut, and inside they go on as before
    assert gets(outside, address, 80) is None
    until(lambda: one.gets(service["ip"], 8080) == "shop", 20)
    for ranges, opened in ((["203.0.113.0/24"], False), (["203.0.113.0/24", "172.24.4.0/24"], True)):
        patch = [{"op": "add", "path": "/manifest/spec/loadBalancerSourceRanges", "value": ranges}]
        status, changed = alpha.ask("PATCH", "/v1/services/shop?wait=30", patch)
        assert (status, changed["source_ranges"], changed["external_ip"]) == (200, ranges, address), changed
        until(lambda opened=opened: (gets(outside, address, 8080) == "shop") is opened, 20)
    # its door goes to another host when that one is lost
    door = next(p for p in alpha.ports(device_id=service["uuid"]))
    where = wired.neutron.request("GET", f"/ports/{door['id']}")["port"]["binding:host_id"]
    lost = next(name for name, host in wired.hosts.items() if host.name == where)
    if pod.host.name != where:
        wired.kill(lost, signal.SIGKILL)
        until(lambda: wired.neutron.request("GET", f"/ports/{door['id']}")["port"]["binding:host_id"] != where, 30)
        until(lambda: gets(outside, address, 8080) == "shop", 30)
        wired.start(lost)
        wired.ready()
    patch = [
        {"op": "remove", "path": "/manifest/spec/loadBalancerSourceRanges"},
        {"op": "replace", "path": "/external", "value": False},
    ]
    status, changed = alpha.ask("PATCH", "/v1/services/shop?wait=30", patch)
    assert (status, changed.get("external"), changed.get("external_ip")) == (200, False, None), changed.get("errors")
    alpha.gone("services", "shop")
    alpha.gone("pods", pod.made["uuid"])
    assert alpha.neutron("GET", "/floatingips")["floatingips"] == []
    assert alpha.ports(device_id=service["uuid"]) == []


@pytest.mark.parametrize(
    ("spec", "more", "field"),
    [
        ({"type": "NodePort"}, {}, "spec.type"),
        ({"loadBalancerSourceRanges": ["192.0.2.0/24"]}, {}, "spec.loadBalancerSourceRanges"),
        ({"loadBalancerSourceRanges": ["everyone"]}, {"external": True}, "spec.loadBalancerSourceRanges[0]"),
        ({"clusterIP": "None"}, {"external": True}, "external"),
    ],
)
def test_what_a_service_cannot_have_is_refused(alpha, ours, spec, more, field):
    status, refused = alpha.service(ours, "no", spec=spec, **more)
    assert status == 400 and refused["errors"][0]["detail"].startswith(f"{field}: "), refused


def test_neutrons_refusals_reach_the_tenant_in_words(wired, alpha, beta):
    model = alpha.model("strange", external_network_id="nowhere")
    _, made = alpha.ask("POST", "/v1/bays?wait=30", {"name": "strange", "baymodel_id": model["uuid"]})
    assert (
        made["status"] == "CREATE_FAILED"
        and "external_network_id: there is no external network 'nowhere'" in made["status_reason"]
    )
    alpha.gone("bays", made["uuid"])
    mine = beta.neutron("GET", "/networks?name=magnum-theirs")["networks"]
    model = alpha.model("stolen", fixed_network=(mine or [{"id": alpha.id}])[0]["id"])
    __, made = alpha.ask("POST", "/v1/bays?wait=30", {"name": "stolen", "baymodel_id": model["uuid"]})
    assert made["status"] == "CREATE_FAILED" and "fixed_network: there is no network" in made["status_reason"], made
    alpha.gone("bays", made["uuid"])
    used = len([n for n in alpha.neutron("GET", "/networks")["networks"] if n["project_id"] == alpha.id])
    wired.neutron.request("PUT", f"/quotas/{alpha.id}", {"quota": {"network": used}})
    model = alpha.model("full")
    _, made = alpha.ask("POST", "/v1/bays?wait=30", {"name": "full", "baymodel_id": model["uuid"]})
    assert made["status"] == "CREATE_FAILED" and "Quota exceeded for resources: ['network']" in made["status_reason"], (
        made
    )
    # once there is room it comes by itself
    wired.neutron.request("DELETE", f"/quotas/{alpha.id}")
    until(lambda: alpha.show("bays", made["uuid"])["status"] == "CREATE_COMPLETE", 30)
    alpha.gone("bays", made["uuid"])


def test_a_network_of_the_tenants_own_is_adopted_and_left(wired, alpha, image):
    network = alpha.made("network", {"name": "own"})
    subnet = alpha.made(
        "subnet",
        {"name": "own", "network_id": network["id"], "ip_version": 4, "cidr": "10.8.0.0/24", "enable_dhcp": False},
    )
    bay = alpha.bay("adopts", fixed_network="own", fixed_subnet="own", external_network_id=None)
    made = alpha.container(bay, "guest", image)
    assert made["addresses"]["own"][0].startswith("10.8.0.")
    alpha.gone("containers", made["uuid"])
    alpha.gone("bays", bay["uuid"])
    assert alpha.neutron("GET", f"/subnets/{subnet['id']}")["subnet"]["name"] == "own"
    assert list(alpha.ports(network_id=network["id"])) == []
    alpha.neutron("DELETE", f"/networks/{network['id']}")


def test_a_host_that_leaves_a_bay_takes_nothing_of_its_network(alpha, image):
    bay = alpha.bay("shrinks", 2)
    networks = alpha.neutron("GET", "/networks?name=magnum-shrinks")["networks"]
    patch = [{"op": "replace", "path": "/node_count", "value": 1}]
    status, changed = alpha.ask("PATCH", f"/v1/bays/{bay['uuid']}?wait=60", patch)
    assert (status, changed["status"]) == (200, "UPDATE_COMPLETE"), changed
    assert alpha.neutron("GET", "/networks?name=magnum-shrinks")["networks"] == networks
    made = alpha.container(bay, "stays", image)
    alpha.gone("containers", made["uuid"])
    alpha.gone("bays", bay["uuid"])
    assert alpha.neutron("GET", "/networks?name=magnum-shrinks")["networks"] == []


def test_what_is_deleted_behind_our_back_is_made_again(wired, alpha, ours, machines, image):
    one, near, far, _ = _pairs(machines)
    (port,) = alpha.ports(device_id=far.made["uuid"])
    alpha.neutron("DELETE", f"/ports/{port['id']}")
    again = until(lambda: [p for p in alpha.ports(device_id=far.made["uuid"]) if p["status"] == "ACTIVE"], 30)
    assert again[0]["id"] != port["id"] and again[0]["fixed_ips"][0]["ip_address"] == far.ip
    until(lambda: one.gets(far.ip) == far.made["name"] and far.gets(one.ip) == one.made["name"], 20)
    # the sandbox, and with it the namespace
    base.run("docker", "-H", near.host.url, "kill", f"magnum-{near.made['uuid']}-sandbox")
    until(lambda: one.gets(near.ip) == near.made["name"], 30)
    # a port with our mark on a host that nobody has any more; one without it is left alone
    network = alpha.ports(device_id=one.made["uuid"])[0]["network_id"]
    body = {
        "network_id": network,
        "project_id": alpha.id,
        "binding:host_id": "host1",
        "device_owner": "magnum:container",
    }
    uuid = "3f8f3a3e-2f6d-4a53-9d5e-0f1d5a6b7c8d"
    wired.neutron.request(
        "POST", "/ports", {"port": {**body, "device_id": uuid, "description": f"magnum:{wired.name}:container:{uuid}"}}
    )
    plain = wired.neutron.request("POST", "/ports", {"port": {**body, "device_id": uuid}})
    until(lambda: [p["id"] for p in alpha.ports(device_id=uuid)] == [plain["port"]["id"]], 20)
    time.sleep(3)
    assert alpha.ports(device_id=uuid)
    alpha.neutron("DELETE", f"/ports/{plain['port']['id']}")


def test_while_neutron_is_down_what_runs_goes_on_and_what_is_new_waits(wired, alpha, ours, machines, image, networking):
    one, near, far, _ = _pairs(machines)
    gone = alpha.container(ours, "gone", image)
    networking.stop()
    try:
        assert one.gets(near.ip) == near.made["name"] and one.gets(far.ip) == far.made["name"]
        status, made = alpha.ask("POST", "/v1/containers?wait=3", {
            "bay_uuid": ours["uuid"], "name": "waits", "image": image, "command": SERVE, "start": True})  # fmt: skip
        assert (status, made.get("status")) == (202, "Creating"), made
        reason = until(lambda: alpha.show("containers", made["uuid"])["status_reason"], 20)
        assert reason.startswith("waits: Neutron does not answer"), reason
        status, stopped = alpha.ask("PUT", f"/v1/containers/{near.made['uuid']}/reboot?wait=30")
        assert stopped["status"] == "Running", stopped
        until(lambda: one.gets(near.ip) == near.made["name"], 20)
        assert alpha.ask("DELETE", f"/v1/containers/{gone['uuid']}?wait=2")[0] == 202
        until(lambda: "Neutron" in (alpha.show("containers", gone["uuid"])["status_reason"] or ""), 20)
        for name in list(wired.hosts):
            wired.kill(name, signal.SIGKILL)
            wired.start(name)
        wired.ready()
        assert one.gets(far.ip) == far.made["name"]
        # what was whole is whole, also for a backend that has just begun
        for _ in range(5):
            assert alpha.show("bays", ours["uuid"])["status"] == "CREATE_COMPLETE"
            time.sleep(0.5)
    finally:
        networking.start()
    until(lambda: alpha.show("containers", made["uuid"])["status"] == "Running", 40)
    until(lambda: alpha.ask("GET", f"/v1/containers/{gone['uuid']}")[0] == 404, 40)
    until(lambda: alpha.ports(device_id=gone["uuid"]) == [], 10)
    waited = Machine(wired, alpha.show("containers", made["uuid"]))
    until(lambda: one.gets(waited.ip) == "waits", 10)
    alpha.gone("containers", made["uuid"])


def test_a_backend_that_is_killed_at_any_step_leaves_one_port_a_container(wired, alpha, ours, image):
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        body = {
            "bay_uuid": ours["uuid"],
            "image": image,
            "command": SERVE,
            "start": True,
            "memory": "16m",
            "stop_timeout": 0,
        }
        tasks = [pool.submit(alpha.ask, "POST", "/v1/containers", {**body, "name": f"k{n}"}) for n in range(8)]
        for wait in (0.4, 0.8):
            time.sleep(wait)
            for name in list(wired.hosts):
                wired.kill(name, signal.SIGKILL)
                wired.start(name)
        answers = [task.result() for task in tasks]
    assert {status for status, _ in answers} == {202}, answers
    made = [body["uuid"] for _, body in answers]
    wired.ready()
    for uuid in made:
        until(lambda uuid=uuid: alpha.show("containers", uuid)["status"] == "Running", 60)
        assert len(until(lambda uuid=uuid: alpha.ports(device_id=uuid))) == 1
    found = [alpha.show("containers", uuid) for uuid in made]
    first = Machine(wired, found[0])
    for one in found[1:]:
        assert until(lambda one=one: first.gets(next(iter(one["addresses"].values()))[0]), 20) == one["name"]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda uuid: alpha.gone("containers", uuid), made))


def test_everything_deleted_leaves_nothing_anywhere(wired, alpha, beta, ours, theirs, machines):
    for tenant, letter, bay in ((alpha, "a", ours), (beta, "b", theirs)):
        tenant.gone("containers", *(m.made["uuid"] for name, m in machines.items() if name.startswith(letter)))
        tenant.gone("bays", bay["uuid"])
        assert [p for p in tenant.ports() if p["project_id"] == tenant.id] == []
    assert leftovers(wired) == []
