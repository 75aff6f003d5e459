package fault

import (
	"testing"

	"github.com/google/go-cmp/cmp"
)

const removed = "table bridge kuorum-fault {}\ndelete table bridge kuorum-fault\n"

func cut(t *testing.T, target string, oneWay bool, ports ...int) Fault {
	t.Helper()
	o := Order{Kind: Cut, Target: target, OneWay: oneWay, Ports: ports}
	return Fault{Order: o, Resolved: mustParse(t, o)}
}

func TestRules(t *testing.T) {
	t.Parallel()
	ports := map[string]string{"cp1": "m1", "cp2": "m2", "cp3": "m3"}
	for _, test := range []struct {
		name   string
		faults []Fault
		want   string // after the removal of what was
	}{
		{"none", nil, ""},
		{"no cut", []Fault{{Order: Order{Kind: Pause}, Resolved: Target{Left: []string{"cp1"}}}}, ""},
		{"machines that are gone", []Fault{cut(t, "x", false), cut(t, "cp1|x", false), cut(t, "x|cp1", true)}, ""},
		{"two sides", []Fault{cut(t, "cp1,cp2|cp3,x", false)}, `table bridge kuorum-fault {
	chain forward {
		type filter hook forward priority 0; policy accept;
		iifname { "m1", "m2" } oifname { "m3" } drop
		iifname { "m3" } oifname { "m1", "m2" } drop
	}
}
`},
		{"one way, ports", []Fault{cut(t, "cp1|cp2", true, 6444, 2380, 2380)}, `table bridge kuorum-fault {
	chain forward {
		type filter hook forward priority 0; policy accept;
		iifname { "m1" } oifname { "m2" } tcp dport { 2380, 6444 } drop
		iifname { "m1" } oifname { "m2" } tcp sport { 2380, 6444 } drop
	}
}
`},
		{"from everybody", []Fault{cut(t, "cp1", false), cut(t, "cp2", true), cut(t, "cp3", false, 53)}, `table bridge kuorum-fault {
	chain prerouting {
		type filter hook prerouting priority 0; policy accept;
		iifname { "m1" } drop
		iifname { "m2" } ether type != arp drop
		iifname { "m3" } tcp dport { 53 } drop
		iifname { "m3" } tcp sport { 53 } drop
	}
	chain postrouting {
		type filter hook postrouting priority 0; policy accept;
		oifname { "m1" } drop
		oifname { "m3" } tcp dport { 53 } drop
		oifname { "m3" } tcp sport { 53 } drop
	}
}
`},
	} {
		if diff := cmp.Diff(removed+test.want, Rules(test.faults, ports)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", test.name, diff)
		}
	}
}
