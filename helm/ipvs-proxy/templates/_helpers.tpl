{{- define "ipvs-proxy.selector" -}}
app.kubernetes.io/name: ipvs-proxy
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "ipvs-proxy.labels" -}}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{ include "ipvs-proxy.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end }}

{{- define "ipvs-proxy.image" -}}
{{- with .Values.image -}}
{{ .repository }}{{ if .digest }}@{{ .digest }}{{ else }}:{{ .tag | default $.Chart.AppVersion }}{{ end }}
{{- end }}
{{- end }}

{{- define "ipvs-proxy.kubeProxyConfiguration" -}}
{{- $ours := dict
      "apiVersion" "kubeproxy.config.k8s.io/v1alpha1"
      "kind" "KubeProxyConfiguration"
      "mode" "ipvs"
      "clusterCIDR" .Values.clusterCIDR
      "detectLocalMode" .Values.detectLocalMode
      "ipvs" (dict "scheduler" .Values.scheduler)
}}
{{- if .Values.podMonitor.enabled }}
{{- $_ := set $ours "metricsBindAddress" (printf "0.0.0.0:%d" (ternary 10349 10249 (not (empty .Values.serviceProxyName)))) }}
{{- end }}
{{- mustMergeOverwrite $ours (deepCopy .Values.kubeProxyConfiguration) | toYaml }}
{{- end }}

{{/* The port of an address of the configuration: (list ADDRESS DEFAULT). An IPv6 address with a port has brackets. */}}
{{- define "ipvs-proxy.port" -}}
{{- $address := first . | default "" }}
{{- if regexMatch `^([^:]*|\[.*\]):[0-9]+$` $address }}{{ regexFind "[0-9]+$" $address }}{{ else }}{{ last . }}{{ end }}
{{- end }}

{{/* What both containers have: how to be called, who and where they are, and their files. */}}
{{- define "ipvs-proxy.container" -}}
image: {{ include "ipvs-proxy.image" . }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
command: [ipvs-proxy]
env:
  - name: NODE_NAME
    valueFrom:
      fieldRef:
        fieldPath: spec.nodeName
  {{- with .Values.apiServer }}
  {{- if .host }}
  - name: KUBERNETES_SERVICE_HOST
    value: {{ .host | quote }}
  - name: KUBERNETES_SERVICE_PORT
    value: {{ .port | quote }}
  {{- end }}
  {{- end }}
{{- end }}

{{- define "ipvs-proxy.configDirectory" -}}
{{- /* kubeadm's config.conf names its kubeconfig by this path. */ -}}
{{ if .Values.existingKubeProxyConfigMap }}/var/lib/kube-proxy{{ else }}/etc/ipvs-proxy{{ end }}
{{- end }}

{{- define "ipvs-proxy.arguments" -}}
- --config={{ include "ipvs-proxy.configDirectory" . }}/{{ if .Values.existingKubeProxyConfigMap }}config.conf{{ else }}config.yaml{{ end }}
- --hostname-override=$(NODE_NAME)
{{- with .Values.serviceProxyName }}
- --service-proxy-name={{ . }}
{{- end }}
{{- if ne .Values.packetFilter "auto" }}
- --packet-filter={{ .Values.packetFilter }}
{{- end }}
{{- end }}
