package pki

import (
	"crypto/tls"
	"errors"
	"fmt"
	"net/url"

	"sigs.k8s.io/yaml"
)

// kubeconfig is the part of clientcmd's Config v1 that kuorum writes. Byte
// slices become base64 on their way to YAML.
type kubeconfig struct {
	APIVersion     string         `json:"apiVersion"`
	Kind           string         `json:"kind"`
	Clusters       []namedCluster `json:"clusters"`
	Users          []namedUser    `json:"users"`
	Contexts       []namedContext `json:"contexts"`
	CurrentContext string         `json:"current-context"`
}

type namedCluster struct {
	Name    string `json:"name"`
	Cluster struct {
		Server string `json:"server"`
		CA     []byte `json:"certificate-authority-data,omitempty"`
		CAFile string `json:"certificate-authority,omitempty"`
	} `json:"cluster"`
}

type namedUser struct {
	Name string `json:"name"`
	User struct {
		Cert     []byte `json:"client-certificate-data,omitempty"`
		Key      []byte `json:"client-key-data,omitempty"`
		CertFile string `json:"client-certificate,omitempty"`
		KeyFile  string `json:"client-key,omitempty"`
	} `json:"user"`
}

type namedContext struct {
	Name    string `json:"name"`
	Context struct {
		Cluster string `json:"cluster"`
		User    string `json:"user"`
	} `json:"context"`
}

// referringKubeconfig holds no secret: it refers to the authority's file and to
// one that has the client's certificate and key, both by paths relative to its
// own directory. Client-go reads such files again while it runs, which it does
// not do with what a kubeconfig holds itself, so that renewing them restarts
// nothing.
func referringKubeconfig(server, clusterName, pemFile, caFile string) ([]byte, error) {
	config := newKubeconfig(server, clusterName, Pair{}, nil)
	config.Clusters[0].Cluster.CAFile = caFile
	config.Users[0].User.CertFile, config.Users[0].User.KeyFile = pemFile, pemFile
	out, err := yaml.Marshal(config)
	if err != nil {
		return nil, fmt.Errorf("cannot write kubeconfig of cluster %q: %w", clusterName, err)
	}
	return out, nil
}

// Kubeconfig writes a kubeconfig (v1) that holds everything it needs. Server is
// an https URL. ClusterName names the cluster, the user and the current
// context alike and as it is (by convention kuorum-NAME), so that the files
// of several clusters can be merged. The result holds a private key: keep it
// with mode 0600.
func Kubeconfig(server, clusterName string, pair Pair, ca []byte) ([]byte, error) {
	if err := checkKubeconfig(server, clusterName, pair, ca); err != nil {
		return nil, fmt.Errorf("cannot write kubeconfig of cluster %q: %w", clusterName, err)
	}
	out, err := yaml.Marshal(newKubeconfig(server, clusterName, pair, ca))
	if err != nil {
		return nil, fmt.Errorf("cannot write kubeconfig of cluster %q: %w", clusterName, err)
	}
	return out, nil
}

func newKubeconfig(server, clusterName string, pair Pair, ca []byte) kubeconfig {
	cluster := namedCluster{Name: clusterName}
	cluster.Cluster.Server, cluster.Cluster.CA = server, ca
	user := namedUser{Name: clusterName}
	user.User.Cert, user.User.Key = pair.Cert, pair.Key
	context := namedContext{Name: clusterName}
	context.Context.Cluster, context.Context.User = clusterName, clusterName
	return kubeconfig{
		APIVersion:     "v1",
		Kind:           "Config",
		Clusters:       []namedCluster{cluster},
		Users:          []namedUser{user},
		Contexts:       []namedContext{context},
		CurrentContext: clusterName,
	}
}

// KubeconfigTLS is the server that a kubeconfig of this package leads to, and
// TLS for calls there. Read gets the files that it refers to, by the names that
// it has for them: relative ones count from the kubeconfig's own directory.
func KubeconfigTLS(data []byte, read func(name string) ([]byte, error)) (server string, config *tls.Config, err error) {
	server, config, err = kubeconfigTLS(data, read)
	if err != nil {
		return "", nil, fmt.Errorf("cannot set up TLS of a kubeconfig: %w", err)
	}
	return server, config, nil
}

func kubeconfigTLS(data []byte, read func(name string) ([]byte, error)) (string, *tls.Config, error) {
	var k kubeconfig
	if err := yaml.Unmarshal(data, &k); err != nil {
		return "", nil, err
	}
	if len(k.Clusters) != 1 || len(k.Users) != 1 {
		return "", nil, fmt.Errorf("it has %d clusters and %d users, one of each is wanted", len(k.Clusters), len(k.Users))
	}
	cluster, user := k.Clusters[0].Cluster, k.Users[0].User
	ca, errCA := inline(cluster.CA, cluster.CAFile, read)
	cert, errCert := inline(user.Cert, user.CertFile, read)
	key, errKey := inline(user.Key, user.KeyFile, read)
	if err := errors.Join(errCA, errCert, errKey); err != nil {
		return "", nil, err
	}
	pair := Pair{Cert: cert, Key: key}
	if err := checkKubeconfig(cluster.Server, k.Clusters[0].Name, pair, ca); err != nil {
		return "", nil, err
	}
	config, trusted, err := baseTLS(ca, pair)
	if err != nil {
		return "", nil, err
	}
	config.RootCAs = poolOf(trusted...)
	return cluster.Server, config, nil
}

// inline is what a kubeconfig holds itself, or else has a file for.
func inline(data []byte, file string, read func(name string) ([]byte, error)) ([]byte, error) {
	if len(data) > 0 {
		return data, nil
	}
	return read(file)
}

func checkKubeconfig(server, clusterName string, pair Pair, ca []byte) error {
	if clusterName == "" {
		return errors.New("the name of the cluster is empty")
	}
	u, err := url.Parse(server)
	if err != nil {
		return fmt.Errorf("the server's address: %w", err)
	}
	if u.Scheme != "https" || u.Hostname() == "" {
		return fmt.Errorf("the server's address %q is not an https URL", server)
	}
	if _, err := tls.X509KeyPair(pair.Cert, pair.Key); err != nil {
		return fmt.Errorf("the client's certificate and key: %w", err)
	}
	if _, err := parseBundle(ca); err != nil {
		return fmt.Errorf("the authority: %w", err)
	}
	return nil
}
