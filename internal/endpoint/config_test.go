package endpoint

import (
	"encoding/json"
	"errors"
	"io/fs"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"kuorum/internal/cluster"
)

const goodConfig = `
listen: ["127.0.0.1:6443", "[fd00::1]:6443"]
backends:
- {name: s1, address: "198.18.0.1:6444"}
- {name: s2, address: "198.18.0.2:6444"}
local: s2
ca: /pki/ca.crt
cert: /pki/client.crt
key: /pki/client.key
status: 127.0.0.1:6442
timeout: 700ms
`

func TestParseConfig(t *testing.T) {
	got, err := parseConfig("f", []byte(goodConfig))
	if err != nil {
		t.Fatal(err)
	}
	want := Config{
		Listen:        []string{"127.0.0.1:6443", "[fd00::1]:6443"},
		Backends:      []Backend{{"s1", "198.18.0.1:6444"}, {"s2", "198.18.0.2:6444"}},
		Local:         "s2",
		CA:            "/pki/ca.crt",
		Cert:          "/pki/client.crt",
		Key:           "/pki/client.key",
		ServerName:    "kubernetes",
		Interval:      cluster.Duration(500 * time.Millisecond),
		ReadyInterval: cluster.Duration(2 * time.Second),
		Timeout:       cluster.Duration(700 * time.Millisecond),
		Fall:          2,
		Rise:          1,
		DrainTimeout:  cluster.Duration(30 * time.Second),
		Status:        "127.0.0.1:6442",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("config (-want +got):\n%s", diff)
	}

	// What the node agent writes with encoding/json is read back the same.
	data, err := json.Marshal(got)
	if err != nil {
		t.Fatal(err)
	}
	again, err := parseConfig("f", data)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(got, again); diff != "" {
		t.Errorf("config after JSON (-want +got):\n%s", diff)
	}
}

func TestParseConfigRefuses(t *testing.T) {
	replace := func(old, new string) string {
		if !strings.Contains(goodConfig, old) {
			t.Fatalf("%q is not in the good configuration", old)
		}
		return strings.Replace(goodConfig, old, new, 1)
	}
	tests := map[string]struct{ content, want string }{
		"empty":              {"", "listen: want at least one"},
		"no YAML":            {"{", "cannot parse"},
		"unknown field":      {goodConfig + "colour: red\n", `unknown field "colour"`},
		"unknown inner":      {replace("{name: s1,", "{name: s1, weight: 3,"), `unknown field "weight"`},
		"field twice":        {goodConfig + "local: s1\n", "already set"},
		"duration":           {replace("700ms", "fast"), "fast"},
		"negative duration":  {replace("700ms", "-1s"), "must not be negative"},
		"negative fall":      {goodConfig + "fall: -1\n", "must not be negative"},
		"listen name":        {replace("127.0.0.1:6443", "localhost:6443"), `listen[0]: "localhost:6443" is not IP:PORT`},
		"listen port":        {replace("127.0.0.1:6443", "127.0.0.1:0"), "listen[0]"},
		"listen no port":     {replace("127.0.0.1:6443", "127.0.0.1"), "listen[0]"},
		"listen twice":       {replace("[fd00::1]:6443", "127.0.0.1:6443"), "listen[1]: 127.0.0.1:6443 is listed twice"},
		"no backend":         {"listen: ['127.0.0.1:1']\nca: x\n", "backends: want at least one"},
		"backend name":       {replace("name: s1, ", ""), "backends[0]: has no name"},
		"backend name twice": {replace("name: s1", "name: s2"), "backends[1]: name s2 is used twice"},
		"backend address":    {replace("198.18.0.1:6444", "s1:6444"), `backends[0]: "s1:6444" is not IP:PORT`},
		"backend twice":      {replace("198.18.0.1:6444", "198.18.0.2:6444"), "backends[1]: address 198.18.0.2:6444 is used twice"},
		"loop":               {replace("198.18.0.1:6444", "127.0.0.1:6443"), "the balancer itself listens"},
		"local":              {replace("local: s2", "local: s9"), `there is no backend "s9"`},
		"no CA":              {replace("ca: /pki/ca.crt", ""), "ca: want"},
		"key without cert":   {replace("cert: /pki/client.crt", ""), "want both or none"},
		"public status":      {replace("status: 127.0.0.1", "status: 0.0.0.0"), "not a loopback address"},
		"status name":        {replace("status: 127.0.0.1", "status: here"), "status: \"here:6442\""},
		"status is listen":   {replace("6442", "6443"), "in listen already"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			_, err := parseConfig("f", []byte(tt.content))
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error is %v, want it to contain %q", err, tt.want)
			}
		})
	}
}

func TestReadConfigWithoutFile(t *testing.T) {
	_, err := readConfig(filepath.Join(t.TempDir(), "absent"))
	if !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("error is %v, want one that says the file does not exist", err)
	}
}
